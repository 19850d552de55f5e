//! The texts of an exec, put together when somebody asks: most execs are one more of a program that is known.

use std::{cell::OnceCell, fmt, ops::Deref};

use super::walked_path;
use crate::argv::Argv;

/// A path as the kernel walked it.
#[derive(Clone)]
pub struct WalkedPath<'a> {
    raw: &'a [u8],
    truncated: bool,
    path: OnceCell<String>,
}

impl<'a> WalkedPath<'a> {
    pub(super) fn new(raw: &'a [u8], truncated: bool) -> Self {
        Self { raw, truncated, path: OnceCell::new() }
    }

    /// Its components from the leaf to the root, each with its NUL.
    #[must_use]
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Whether this is the path, said without putting it together. `false` for one that is no UTF-8, or that has no components.
    #[must_use]
    pub fn is(&self, path: &str) -> bool {
        let mut rest = path.as_bytes();
        for component in self.raw.split(|byte| *byte == 0).filter(|component| !component.is_empty()) {
            match rest.strip_suffix(component).and_then(|rest| rest.strip_suffix(b"/")) {
                Some(above) => rest = above,
                None => return false,
            }
        }
        rest.len() < path.len() && rest == if self.truncated { &b"..."[..] } else { b"" }
    }
}

impl Deref for WalkedPath<'_> {
    type Target = str;

    fn deref(&self) -> &str {
        self.path.get_or_init(|| walked_path(self.raw, self.truncated))
    }
}

impl PartialEq for WalkedPath<'_> {
    fn eq(&self, other: &Self) -> bool {
        (self.raw, self.truncated) == (other.raw, other.truncated)
    }
}

impl fmt::Debug for WalkedPath<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

/// Arguments as the kernel keeps them.
#[derive(Clone)]
pub struct KernelArgv<'a> {
    raw: &'a [u8],
    argv: OnceCell<Argv>,
}

impl<'a> KernelArgv<'a> {
    pub(super) fn new(raw: &'a [u8]) -> Self {
        Self { raw, argv: OnceCell::new() }
    }

    /// Each with its NUL.
    #[must_use]
    pub fn raw(&self) -> &'a [u8] {
        self.raw
    }

    /// Whether these are the arguments, said without putting them together. `false` for those that are no UTF-8.
    #[must_use]
    pub fn is(&self, argv: &Argv) -> bool {
        self.raw.strip_suffix(&[0]).unwrap_or(self.raw) == argv.text().as_bytes()
    }
}

impl Deref for KernelArgv<'_> {
    type Target = Argv;

    fn deref(&self) -> &Argv {
        self.argv.get_or_init(|| Argv::from_kernel(self.raw))
    }
}

impl PartialEq for KernelArgv<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.raw == other.raw
    }
}

impl fmt::Debug for KernelArgv<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_told_from_others_as_if_it_had_been_put_together() {
        let raws: [&[u8]; 9] = [
            b"",
            b"sh\0",
            b"sh\0bin\0",
            b"sh\0bin",
            b"\0sh\0\0bin\0",
            b"sh\0nib\0",
            b"bin\0sh\0",
            b"a\xff\0",
            b"b/sh\0",
        ];
        let texts = ["", "/", "/sh", "/bin/sh", "...", ".../sh", ".../bin/sh", "/b/sh", "/a\u{fffd}", "x/bin/sh"];
        for (raw, truncated) in raws.into_iter().flat_map(|raw| [(raw, false), (raw, true)]) {
            let path = WalkedPath::new(raw, truncated);
            let plain = std::str::from_utf8(raw).is_ok() && !raw.is_empty();
            for text in texts {
                assert_eq!(path.is(text), plain && *path == *text, "{raw:?} {truncated} {text}");
            }
        }
    }

    #[test]
    fn arguments_are_told_from_others_as_if_they_had_been_put_together() {
        let raws: [&[u8]; 6] = [b"", b"\0", b"a\0", b"a\0b\0", b"a\0b", b"a\xff\0"];
        for raw in raws {
            for other in raws {
                let (argv, other) = (KernelArgv::new(raw), Argv::from_kernel(other));
                assert_eq!(argv.is(&other), std::str::from_utf8(raw).is_ok() && *argv == other, "{raw:?} {other:?}");
            }
        }
    }
}
