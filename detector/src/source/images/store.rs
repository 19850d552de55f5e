//! One image store: containerd's content store, whose blobs are named by their digests, or the list of images of
//! containers/storage.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs::{self, File},
    io::{self, Read as _},
    os::{fd::AsRawFd as _, unix::fs::MetadataExt as _},
    path::{Path, PathBuf},
};

use nix::{
    fcntl::{OFlag, openat},
    sys::stat::{FileStat, Mode, SFlag},
};
use sha2::{Digest as _, Sha256};

use super::{
    View,
    blob::{self, BLOB_MAX},
};
use crate::{
    context::image::is_sha256,
    record::{ImageArrival, InodeKey},
    source::{
        hex,
        root::{file_type, read_file},
    },
};

/// Most blobs whose names are remembered, as 32 bytes each.
const KNOWN_MAX: usize = 65_536;
/// Most blobs that are waited for, and read at once.
const EXPECTED_MAX: usize = 1024;
/// The list of images in containers/storage, and how long it may be.
const LIST: &str = "images.json";
const LIST_MAX: usize = 8 << 20;

/// What kind of store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// `blobs/sha256` of containerd.
    Blobs,
    /// `overlay-images` of containers/storage.
    Listed,
}

/// A directory that images come into.
#[derive(Debug)]
pub struct Store {
    view: View,
    place: Place,
    dir: PathBuf,
    pub inode: InodeKey,
    /// Names of blobs, or ids of images, that are there.
    known: BTreeSet<String>,
    /// Blobs of which an act told and that were not there yet.
    expected: BTreeSet<String>,
    /// Modification time of the directory when it was last listed.
    listed: Option<(i64, i64)>,
}

/// The inode of a directory, if it is one.
pub fn directory(view: &View, dir: &Path) -> Option<InodeKey> {
    let root = view.open()?;
    let (fd, stat) = root.walk(dir).target.ok()?;
    (file_type(&stat) == SFlag::S_IFDIR).then(|| root.inode(&fd, &stat))
}

impl Store {
    pub fn new(view: View, place: Place, dir: PathBuf, inode: InodeKey) -> Self {
        Self { view, place, dir, inode, known: BTreeSet::new(), expected: BTreeSet::new(), listed: None }
    }

    /// Takes what is there for known; with a wall time in ns, only what is older.
    pub fn remember(&mut self, since: Option<i128>) {
        match self.place {
            Place::Blobs => {
                let old = |metadata: &fs::Metadata| {
                    let changed = i128::from(metadata.ctime()) * 1_000_000_000 + i128::from(metadata.ctime_nsec());
                    since.is_none_or(|since| changed < since)
                };
                for entry in self.entries() {
                    if self.known.len() < KNOWN_MAX && entry.metadata().is_ok_and(|metadata| old(&metadata)) {
                        self.known.extend(entry.file_name().into_string());
                    }
                }
                // What is younger is found by the next listing.
                self.listed = if since.is_none() { self.modified() } else { None };
            }
            // The list has no times: all of it is known.
            Place::Listed => self.known.extend(self.list().unwrap_or_default().into_keys()),
        }
    }

    /// An act on an entry of that name was seen, which may lie in this directory.
    pub fn expect(&mut self, name: &str) {
        if self.place == Place::Blobs
            && is_sha256(name)
            && self.expected.len() < EXPECTED_MAX
            && !self.known.contains(name)
        {
            self.expected.insert(name.to_owned());
        }
    }

    /// What has come since; with `whole`, also what no act told of.
    pub fn arrived(&mut self, whole: bool) -> Vec<ImageArrival> {
        if self.place == Place::Listed {
            return self.newly_listed();
        }
        if whole {
            let modified = self.modified();
            if modified != self.listed {
                self.listed = modified;
                let names = self.entries().filter_map(|entry| entry.file_name().into_string().ok());
                let new: Vec<_> = names.filter(|name| is_sha256(name) && !self.known.contains(name)).collect();
                // With more blobs than can be remembered nothing tells the new from the old.
                if self.known.len() < KNOWN_MAX {
                    self.expected.extend(new.into_iter().take(EXPECTED_MAX));
                }
            }
        }
        let mut found = Vec::new();
        for name in std::mem::take(&mut self.expected) {
            match self.blob(&name) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    // About to come. What does not, is no more expected after a full listing.
                    if !whole {
                        self.expected.insert(name);
                    }
                    continue;
                }
                Ok(Some(image)) => found.push(image),
                Ok(None) => {}
                Err(error) => found.push(ImageArrival {
                    digest: format!("sha256:{name}"),
                    path: self.path(&name),
                    unreadable: Some(error.to_string()),
                    ..ImageArrival::default()
                }),
            }
            if self.known.len() < KNOWN_MAX {
                self.known.insert(name);
            }
        }
        found
    }

    /// Those of these images that are here, with their parts, as far as they are here too.
    pub fn present(&self, digests: &[String]) -> Vec<ImageArrival> {
        if self.place == Place::Listed {
            let listed = self.list().unwrap_or_default().into_values();
            let wanted = listed.filter(|image| digests.contains(&image.digest));
            return wanted.map(|image| ImageArrival { present: true, ..image }).collect();
        }
        let mut found = Vec::new();
        let mut todo: Vec<String> = digests.to_vec();
        while let Some(digest) = todo.pop() {
            let Some(name) = digest.strip_prefix("sha256:").filter(|name| is_sha256(name)) else { continue };
            if let Ok(Some(image)) = self.blob(name)
                && found.len() < EXPECTED_MAX
            {
                todo.extend(image.children.iter().cloned());
                found.push(ImageArrival { present: true, ..image });
            }
        }
        found
    }

    fn path(&self, name: &str) -> String {
        self.dir.join(name).display().to_string()
    }

    /// A blob, if it is an image's manifest or index.
    fn blob(&self, name: &str) -> io::Result<Option<ImageArrival>> {
        let dir = self.open()?.0;
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
        let file = File::from(openat(&dir, name, flags, Mode::empty())?);
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.len() > BLOB_MAX {
            return Ok(None); // A layer, most likely.
        }
        let mut bytes = vec![0; 1];
        let mut file = file.take(BLOB_MAX);
        // Most blobs are compressed layers: a look at the first byte is all that they cost.
        if file.read(&mut bytes)? == 0 || !matches!(bytes.first(), Some(b'{' | b' ' | b'\t' | b'\r' | b'\n')) {
            return Ok(None);
        }
        file.read_to_end(&mut bytes)?;
        let Some(image) = blob::arrival(&bytes, &format!("sha256:{name}"), &self.path(name)) else { return Ok(None) };
        let sha256 = hex(&Sha256::digest(&bytes));
        if sha256 != name {
            return Err(io::Error::other(format!("it is not what its name says: its sha256 is {sha256}")));
        }
        Ok(Some(image))
    }

    fn newly_listed(&mut self) -> Vec<ImageArrival> {
        let Ok(listed) = self.list() else { return Vec::new() };
        self.known.retain(|id| listed.contains_key(id));
        let new = listed.into_iter().filter(|(id, _)| !self.known.contains(id));
        let (ids, images): (Vec<_>, Vec<_>) = new.take(EXPECTED_MAX).unzip();
        self.known.extend(ids);
        images
    }

    fn list(&self) -> io::Result<BTreeMap<String, ImageArrival>> {
        let root = self.view.open().ok_or(io::ErrorKind::NotFound)?;
        let bytes = read_file(&root, &self.dir.join(LIST), LIST_MAX)?;
        Ok(blob::listed(&bytes, &self.path(LIST))?)
    }

    fn open(&self) -> io::Result<(std::os::fd::OwnedFd, FileStat)> {
        let root = self.view.open().ok_or(io::ErrorKind::NotFound)?;
        Ok(root.walk(&self.dir).target?)
    }

    fn modified(&self) -> Option<(i64, i64)> {
        let (_, stat) = self.open().ok()?;
        Some((stat.st_mtime, stat.st_mtime_nsec))
    }

    fn entries(&self) -> impl Iterator<Item = fs::DirEntry> + use<> {
        let dir = self.open().ok();
        let entries = dir.as_ref().map(|(fd, _)| fs::read_dir(format!("/proc/self/fd/{}", fd.as_raw_fd())));
        // The listing holds the directory open by itself.
        entries.into_iter().flatten().flatten().filter_map(Result::ok).take(2 * KNOWN_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Content {
        dir: tempfile::TempDir,
    }

    impl Content {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            fs::create_dir_all(dir.path().join("blobs")).unwrap();
            Self { dir }
        }

        /// Puts a blob where containerd does; yields its name.
        fn put(&self, bytes: &[u8]) -> String {
            let name = hex(&Sha256::digest(bytes));
            fs::write(self.dir.path().join("data"), bytes).unwrap();
            fs::rename(self.dir.path().join("data"), self.dir.path().join("blobs").join(&name)).unwrap();
            name
        }

        fn manifest(&self, config: &str) -> String {
            self.put(format!(r#"{{"config":{{"digest":"sha256:{config}"}},"layers":[]}}"#).as_bytes())
        }

        fn store(&self, place: Place) -> Store {
            let root = self.dir.path().to_owned();
            let view = View { root, mountinfo: "/proc/self/mountinfo".into(), host: true, pids: BTreeSet::new() };
            let dir = Path::new("/blobs");
            let inode = directory(&view, dir).unwrap();
            Store::new(view, place, dir.to_owned(), inode)
        }
    }

    fn digests(images: &[ImageArrival]) -> Vec<&str> {
        images.iter().map(|image| image.digest.as_str()).collect()
    }

    #[test]
    fn what_was_there_has_not_arrived_and_what_comes_has_once() {
        let content = Content::new();
        let old = content.manifest("old");
        let mut store = content.store(Place::Blobs);
        store.remember(None);
        assert_eq!(store.arrived(true), []);
        // Announced before it is there, as a security hook does.
        let text = br#"{"config":{"digest":"sha256:new"},"layers":[]}"#;
        let name = hex(&Sha256::digest(text));
        store.expect(&name);
        store.expect(&old);
        assert_eq!(store.arrived(false), []);
        content.put(text);
        assert_eq!(digests(&store.arrived(false)), [format!("sha256:{name}")]);
        assert_eq!(store.arrived(true), []);
        // Nobody told of this one; a layer and a configuration beside it are no images.
        content.put(b"\x1f\x8blayer");
        content.put(br#"{"architecture":"amd64","rootfs":{}}"#);
        let unseen = content.manifest("unseen");
        assert_eq!(store.arrived(false), []);
        assert_eq!(digests(&store.arrived(true)), [format!("sha256:{unseen}")]);
    }

    #[test]
    fn a_blob_that_is_not_what_its_name_says_is_told_as_such() {
        let content = Content::new();
        let mut store = content.store(Place::Blobs);
        store.remember(None);
        let name = "0".repeat(64);
        fs::write(content.dir.path().join("blobs").join(&name), r#"{"manifests":[]}"#).unwrap();
        store.expect(&name);
        let found = store.arrived(false);
        assert!(found[0].unreadable.as_deref().unwrap().contains("not what its name says"), "{found:?}");
    }

    #[test]
    fn a_fifo_a_link_and_a_directory_in_the_store_are_no_images_and_hold_nothing_up() {
        let content = Content::new();
        let mut store = content.store(Place::Blobs);
        store.remember(None);
        let at = |c: char| content.dir.path().join("blobs").join(c.to_string().repeat(64));
        nix::unistd::mkfifo(&at('1'), Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", at('2')).unwrap();
        fs::create_dir(at('3')).unwrap();
        let found = store.arrived(true);
        assert!(found.iter().all(|image| image.unreadable.is_some() && image.children.is_empty()), "{found:?}");
    }

    #[test]
    fn known_images_that_are_here_come_with_their_parts() {
        let content = Content::new();
        let manifest = content.manifest("cc");
        let index = content.put(format!(r#"{{"manifests":[{{"digest":"sha256:{manifest}"}}]}}"#).as_bytes());
        let store = content.store(Place::Blobs);
        let found = store.present(&[format!("sha256:{index}"), format!("sha256:{}", "9".repeat(64))]);
        assert_eq!(digests(&found), [format!("sha256:{index}"), format!("sha256:{manifest}")]);
        assert!(found.iter().all(|image| image.present));
    }

    #[test]
    fn images_of_crio_arrive_with_the_list() {
        let content = Content::new();
        let list = content.dir.path().join("blobs/images.json");
        fs::write(&list, r#"[{"id":"aa"}]"#).unwrap();
        let mut store = content.store(Place::Listed);
        store.remember(None);
        assert_eq!(store.arrived(false), []);
        fs::write(&list, r#"[{"id":"aa"},{"id":"bb","digest":"sha256:dd","names":["evil/pause:1"]}]"#).unwrap();
        let found = store.arrived(false);
        assert_eq!((digests(&found), &found[0].names[0]), (vec!["sha256:dd"], &"evil/pause:1".to_owned()));
        fs::write(&list, "[{").unwrap();
        assert_eq!(store.arrived(false), []);
    }
}
