//! The agent's own files, as the kernel names them when the agent begins.

use std::path::{Path, PathBuf};

use detector_common::watch;

use crate::{
    record::{InodeKey, Own, OwnFile, OwnRole, bounded},
    source::root::Root,
};

/// Finds them. What does not exist is left out: a directory of traces or of a spool was made by now.
pub fn find(files: &[(OwnRole, PathBuf)]) -> Own {
    let mut own = Own { pid: std::process::id(), files: Vec::new() };
    let Ok(root) = Root::open(Path::new("/"), PathBuf::from("/proc/self/mountinfo")) else { return own };
    let inode = |path: &Path| {
        let (fd, stat) = root.walk(path).target.ok()?;
        Some(root.inode(&fd, &stat))
    };
    for (role, path) in files {
        let Ok(path) = std::path::absolute(path) else { continue };
        let shown = bounded(&path.display().to_string());
        if *role == OwnRole::Configuration {
            let name = path.file_name().map(|name| bounded(&name.to_string_lossy()));
            if let Some(dir) = path.parent().and_then(inode) {
                own.files.push(OwnFile { role: *role, path: shown, dir, file: inode(&path), name });
            }
            continue;
        }
        // Evidence lies one level below.
        for (dir, shown) in [(path.clone(), shown.clone()), (path.join("evidence"), format!("{shown}/evidence"))] {
            if let Some(dir) = inode(&dir) {
                own.files.push(OwnFile { role: *role, path: shown, dir, file: None, name: None });
            }
        }
    }
    own
}

/// What the kernel is to tell of.
pub fn watch_set(own: &Own) -> impl Iterator<Item = (InodeKey, u32)> {
    own.files.iter().flat_map(|file| [Some(file.dir), file.file]).flatten().map(|inode| (inode, watch::OWN))
}
