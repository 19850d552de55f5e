//! One flat row a record: the same columns in CSV and Parquet.

use std::borrow::Cow;

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    U32,
    U64,
    I32,
    Bool,
    /// Nanoseconds since the epoch, UTC.
    Time,
    Text,
    /// Text that is JSON.
    Json,
}

/// One cell that is not null.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Cell<'r> {
    U32(u32),
    U64(u64),
    I32(i32),
    Bool(bool),
    Time(i64),
    Text(&'r str),
}

/// A column: its name, type, meaning, and how to get at its cell.
pub struct Column {
    pub name: &'static str,
    pub kind: Kind,
    pub says: &'static str,
    pub get: for<'r> fn(&'r Row<'_>) -> Option<Cell<'r>>,
}

macro_rules! cell_type {
    ($a:lifetime U32) => { u32 };
    ($a:lifetime U64) => { u64 };
    ($a:lifetime I32) => { i32 };
    ($a:lifetime Bool) => { bool };
    ($a:lifetime Time) => { i64 };
    ($a:lifetime Text) => { Cow<$a, str> };
    ($a:lifetime Json) => { Cow<$a, str> };
}

macro_rules! cell {
    ($value:expr, Text) => {
        $value.as_deref().map(Cell::Text)
    };
    ($value:expr, Json) => {
        $value.as_deref().map(Cell::Text)
    };
    ($value:expr, $kind:ident) => {
        $value.map(Cell::$kind)
    };
}

macro_rules! columns {
    ($($name:ident: $kind:ident, $says:literal;)*) => {
        /// A row. What does not apply to a record, or is not known, is `None`.
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct Row<'a> {
            $(#[doc = $says] pub $name: Option<cell_type!('a $kind)>,)*
        }

        /// All columns, in order. New ones come last: whoever reads by position goes on.
        pub const COLUMNS: &[Column] = &[$(Column {
            name: stringify!($name),
            kind: Kind::$kind,
            says: $says,
            get: |row| cell!(row.$name, $kind),
        }),*];
    };
}

columns! {
    seq: U64, "Position in the stream of the node, from 1.";
    time: Time, "When it happened, UTC.";
    node: Text, "The node's name.";
    kind: Text, "What the record is.";
    hook: Text, "The kernel hook that saw it.";
    origin: Text, "Where the acting process lives: host, container or unknown.";
    pod_namespace: Text, "Namespace of the pod that the process lives in.";
    pod_name: Text, "That pod's name.";
    pod_uid: Text, "That pod's uid.";
    container_id: Text, "The container that the process lives in, as its runtime calls it.";
    container_name: Text, "The container's name in the pod's specification.";
    image: Text, "The container's image as the pod names it; of records about images, one of their names.";
    image_digest: Text, "What the runtime resolved that to.";
    pid: U32, "The acting process, in the node's pid namespace; of a fork, the parent.";
    tid: U32, "The acting thread.";
    start: U64, "When the process started, in 1/100 s since the node's boot: node, pid and start name a process.";
    start_time: Time, "The same as a time, UTC.";
    uid: U32, "Its real user id, in the node's user namespace.";
    login_uid: U32, "Who logged in (the audit login uid).";
    tty: Text, "Its controlling terminal.";
    comm: Text, "The thread's short name.";
    exe: Text, "The program that the process runs, as its mount namespace names it.";
    argv: Json, "Its arguments, a JSON array.";
    parent_pid: U32, "Who forked it.";
    parent_start: U64, "When that one started, as start.";
    parent_exe: Text, "What that one ran last.";
    cgroup_id: U64, "The process's cgroup, by its inode number in the v2 hierarchy.";
    cgroup: Text, "Its path below the root.";
    mnt_ns: U32, "The process's mount namespace.";
    pid_ns: U32, "The process's pid namespace.";
    target_pid: U32, "Whom it acted on: the child of a fork, whoever is traced or moved into a cgroup.";
    target_start: U64, "When that one started, as start.";
    syscall: Text, "The system call, where its end was seen.";
    path: Text, "The file: a whole path, or of entry records the name in its directory.";
    to_path: Text, "The second name: a rename's new one, a link's target, a mount point.";
    dev: Text, "The file's device, major:minor.";
    ino: U64, "The file's inode.";
    dir_ino: U64, "The inode of the directory that it lies in.";
    denied: Bool, "The act was refused.";
    change: Text, "What became of a manifest: present, added, modified, removed, dir_replaced, dir_removed.";
    sha256: Text, "Digest of the manifest, or of the executed file.";
    content: Text, "The manifest's text.";
    exit_status: I32, "How the process ended, as wait(2) reports it.";
    alerts: Json, "The alerts that this record completed: a JSON array of technique, severity and title.";
    detail: Json, "What else the record says, as JSON.";
}
