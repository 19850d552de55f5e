//! The arguments of a program, as one text: a node runs many programs, and each of them is remembered.

use std::sync::Arc;

use crate::decode::text;

/// Arguments, split by the NUL between them. Shared: a copy costs no memory. As in `/proc/<pid>/cmdline`, no argument at all and
/// one empty argument are the same.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Argv(Arc<str>);

impl Argv {
    /// From bytes as the kernel keeps them: each argument with its NUL.
    #[must_use]
    pub fn from_kernel(bytes: &[u8]) -> Self {
        Self(text(bytes.strip_suffix(&[0]).unwrap_or(bytes)).into())
    }

    /// As they are kept: a NUL between each two.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.0
    }

    pub fn iter(&self) -> impl Iterator<Item = &str> {
        // Of an empty text `split` makes one empty part.
        self.0.split('\0').take(if self.0.is_empty() { 0 } else { usize::MAX })
    }

    #[must_use]
    pub fn first(&self) -> Option<&str> {
        self.iter().next()
    }

    /// With spaces between them, for people.
    #[must_use]
    pub fn joined(&self) -> String {
        self.0.replace('\0', " ")
    }

    #[must_use]
    pub fn to_vec(&self) -> Vec<String> {
        self.iter().map(str::to_owned).collect()
    }
}

impl<T: AsRef<str>> FromIterator<T> for Argv {
    fn from_iter<I: IntoIterator<Item = T>>(args: I) -> Self {
        let mut text = String::new();
        for (n, arg) in args.into_iter().enumerate() {
            if n > 0 {
                text.push('\0');
            }
            text.push_str(arg.as_ref());
        }
        Self(text.into())
    }
}

impl<T: AsRef<str>> PartialEq<[T]> for Argv {
    fn eq(&self, other: &[T]) -> bool {
        self.iter().eq(other.iter().map(AsRef::as_ref))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_split_at_their_nuls_and_empty_ones_count_unless_alone() {
        for (kernel, args) in [
            (&b"env\0\0x=1\0"[..], &["env", "", "x=1"][..]),
            (b"sh", &["sh"]),
            (b"a\0\0", &["a", ""]),
            (b"\0", &[]),
            (b"", &[]),
            (b"a\xff\0b\0", &["a\u{fffd}", "b"]),
        ] {
            let argv = Argv::from_kernel(kernel);
            assert!(argv == *args, "{argv:?}");
            assert_eq!(argv, args.iter().collect::<Argv>());
            assert_eq!(argv.first(), args.first().copied());
            assert_eq!(argv.to_vec(), args);
        }
        assert_eq!(Argv::from_kernel(b"a\0b c\0").joined(), "a b c");
    }
}
