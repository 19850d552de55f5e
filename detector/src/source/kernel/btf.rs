//! The running kernel's types: field offsets, and whether a tracepoint is there.

use std::{fs, path::Path};

use btf_rs::{Btf, BtfType as _, Struct, Type};
use detector_common::KernelOffsets;

/// Where the kernel shows its own types.
pub const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

/// And those of overlayfs, where it is a module.
const OVERLAY: &str = "/sys/kernel/btf/overlay";

/// Why the kernel's types are not to be had.
#[derive(Debug, thiserror::Error)]
pub enum BtfError {
    #[error("{path}: {error}{}", no_btf(path))]
    Read { path: String, error: std::io::Error },
    #[error("{path}: not BTF: {why} at byte {at}")]
    Format { path: String, why: &'static str, at: usize },
    #[error("{path}: {size} bytes, and its header says {need}: truncated. Give --btf a whole file, or none")]
    Truncated { path: String, size: usize, need: usize },
    #[error("{path}: {error}")]
    Parse { path: String, error: btf_rs::Error },
}

/// What is to be done when the kernel shows no types.
fn no_btf(path: &str) -> &'static str {
    if path == VMLINUX {
        ". The kernel must be built with CONFIG_DEBUG_INFO_BTF=y; or give its BTF with --btf"
    } else {
        ""
    }
}

/// Reads and checks a BTF file, as `--btf` or the kernel gives it.
///
/// # Errors
/// When it cannot be read, is no BTF, or is shorter than its header says.
pub fn read(path: &Path) -> Result<Vec<u8>, BtfError> {
    let name = || path.display().to_string();
    let bytes = fs::read(path).map_err(|error| BtfError::Read { path: name(), error })?;
    let field = |at: usize| {
        bytes
            .get(at..at + 4)
            .and_then(|b| b.try_into().ok())
            .map(u32::from_ne_bytes)
            .ok_or_else(|| BtfError::Truncated { path: name(), size: bytes.len(), need: 24 })
    };
    // struct btf_header: magic u16, version u8, flags u8, hdr_len, type_off, type_len, str_off, str_len u32.
    if bytes.get(..2) != Some(&0xeb9f_u16.to_ne_bytes()) {
        return Err(BtfError::Format { path: name(), why: "it does not start with the magic number 0xeb9f", at: 0 });
    }
    let header = field(4)? as usize;
    let types = header.saturating_add(field(8)? as usize).saturating_add(field(12)? as usize);
    let strings = header.saturating_add(field(16)? as usize).saturating_add(field(20)? as usize);
    let need = types.max(strings);
    if bytes.len() < need {
        return Err(BtfError::Truncated { path: name(), size: bytes.len(), need });
    }
    Ok(bytes)
}

/// The running kernel's types, parsed.
pub struct Types(Btf);

impl Types {
    /// Parses what [`read`] gave.
    ///
    /// # Errors
    /// When the bytes do not parse as BTF.
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, BtfError> {
        let parsed = Btf::from_bytes(bytes);
        parsed.map(Self).map_err(|error| BtfError::Parse { path: path.display().to_string(), error })
    }

    /// Resolves every field of [`KernelOffsets`]; those that this kernel does not have stay `MISSING`.
    #[must_use]
    pub fn offsets(&self) -> KernelOffsets {
        let mut offsets = KernelOffsets::NONE;
        // Only here when it is a module, and one that is loaded.
        let overlay = Btf::from_split_file(OVERLAY, &self.0).ok();
        let resolve = |btf: &Btf, name, members| structure(btf, name).and_then(|of| member_path(btf, of, members));
        for (index, (_, name, members)) in KernelOffsets::FIELDS.iter().enumerate() {
            let of_module = || overlay.as_ref().filter(|_| name.starts_with("ovl_"));
            let resolved = resolve(&self.0, name, members)
                .or_else(|| of_module().and_then(|module| resolve(module, name, members)));
            if let (Some(offset), Some(field)) = (resolved, offsets.field_mut(index)) {
                *field = offset;
            }
        }
        offsets
    }

    /// Parameters of a kernel function: for each the structure that it points to, empty for anything else. `None` when
    /// the kernel has no such function.
    #[must_use]
    pub fn function(&self, name: &str) -> Option<Vec<String>> {
        self.0.resolve_types_by_name(name).ok()?.into_iter().find_map(|found| match found {
            Type::Func(function) => match self.0.resolve_chained_type(&function).ok()? {
                Type::FuncProto(prototype) => Some(self.parameters(&prototype)),
                _ => None,
            },
            _ => None,
        })
    }

    /// The same for a tracepoint, whose prototype is that of `btf_trace_<name>` without the first parameter.
    #[must_use]
    pub fn tracepoint(&self, name: &str) -> Option<Vec<String>> {
        let found = self.0.resolve_types_by_name(&format!("btf_trace_{name}")).ok()?.into_iter().next()?;
        match self.behind(found)? {
            Type::FuncProto(prototype) => {
                Some(self.parameters(&prototype).split_off(1.min(prototype.parameters.len())))
            }
            _ => None,
        }
    }

    fn parameters(&self, prototype: &btf_rs::FuncProto) -> Vec<String> {
        let pointed = |parameter: &btf_rs::Parameter| match self
            .behind(self.0.resolve_type_by_id(parameter.get_type_id()?).ok()?)?
        {
            Type::Struct(structure) => self.0.resolve_name(&structure).ok(),
            _ => None,
        };
        prototype.parameters.iter().map(|parameter| pointed(parameter).unwrap_or_default()).collect()
    }

    /// The type behind pointers, qualifiers and typedefs.
    fn behind(&self, mut found: Type) -> Option<Type> {
        for _ in 0..8 {
            match found {
                Type::Ptr(_) | Type::Const(_) | Type::Volatile(_) | Type::Restrict(_) | Type::Typedef(_) => {
                    let id = found.as_btf_type()?.get_type_id()?;
                    if id == 0 {
                        return None;
                    }
                    found = self.0.resolve_type_by_id(id).ok()?;
                }
                other => return Some(other),
            }
        }
        None
    }
}

fn structure(btf: &Btf, name: &str) -> Option<Struct> {
    btf.resolve_types_by_name(name).ok()?.into_iter().find_map(|found| match found {
        Type::Struct(found) if !found.members.is_empty() => Some(found),
        _ => None,
    })
}

/// Byte offset of `a.b.c` in a structure.
fn member_path(btf: &Btf, mut of: Struct, path: &str) -> Option<u32> {
    let mut offset = 0;
    let mut names = path.split('.').peekable();
    while let Some(name) = names.next() {
        let (bits, id) = member(btf, &of, name, 0)?;
        offset += bits;
        if names.peek().is_some() {
            of = aggregate(btf, id)?;
        }
    }
    // Bit fields have no address.
    (offset % 8 == 0).then_some(offset / 8)
}

/// Bit offset and type of a member, also inside anonymous structures and unions.
fn member(btf: &Btf, of: &Struct, name: &str, depth: u32) -> Option<(u32, u32)> {
    of.members.iter().find_map(|member_| {
        let id = member_.get_type_id()?;
        match btf.resolve_name(member_).ok().as_deref() {
            Some(found) if found == name => Some((member_.bit_offset(), id)),
            Some("") | None if depth < 8 => {
                let (bits, id) = member(btf, &aggregate(btf, id)?, name, depth + 1)?;
                Some((member_.bit_offset() + bits, id))
            }
            _ => None,
        }
    })
}

/// The structure or union behind qualifiers and typedefs.
fn aggregate(btf: &Btf, mut id: u32) -> Option<Struct> {
    for _ in 0..8 {
        match btf.resolve_type_by_id(id).ok()? {
            Type::Struct(found) | Type::Union(found) => return Some(found),
            other => id = other.as_btf_type()?.get_type_id()?,
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn the_running_kernel_has_every_field_that_a_required_hook_needs() {
        let path = Path::new(VMLINUX);
        let offsets = Types::parse(path, &read(path).unwrap()).unwrap().offsets();
        for hook in crate::source::kernel::hooks::HOOKS.iter().filter(|hook| hook.required) {
            for field in hook.needs {
                assert_ne!(offsets.get(field), Some(KernelOffsets::MISSING), "{field}, for {}", hook.name);
                assert_ne!(offsets.get(field), None, "{field} is not a field of KernelOffsets");
            }
        }
    }

    #[test]
    fn a_truncated_file_is_named_as_such() {
        let whole = fs::read(VMLINUX).unwrap();
        for len in [2, 10, 24, 1000, whole.len() / 2, whole.len() - 1] {
            let mut file = tempfile::NamedTempFile::new().unwrap();
            file.write_all(&whole[..len]).unwrap();
            assert!(matches!(read(file.path()), Err(BtfError::Truncated { .. })), "{len}");
        }
    }

    #[test]
    fn damaged_types_are_an_error_and_no_panic() {
        let path = Path::new(VMLINUX);
        let mut bytes = fs::read(VMLINUX).unwrap();
        let len = bytes.len();
        for start in [24, 4096, len / 4] {
            for byte in &mut bytes[start..start + 64] {
                *byte = 0xff;
            }
        }
        // Whatever parses must still not be believed to have all fields, or be refused.
        if let Ok(types) = Types::parse(path, &bytes) {
            assert_eq!(types.offsets().task_tgid, KernelOffsets::MISSING);
        }
    }

    #[test]
    fn prototypes_are_those_of_the_running_kernel() {
        let path = Path::new(VMLINUX);
        let types = Types::parse(path, &read(path).unwrap()).unwrap();
        assert_eq!(types.function("security_file_open").unwrap(), ["file"]);
        assert_eq!(types.function("security_inode_link").unwrap(), ["dentry", "inode", "dentry"]);
        assert_eq!(types.tracepoint("sched_process_exec").unwrap(), ["task_struct", "", "linux_binprm"]);
        assert_eq!(types.function("no_such_function"), None);
    }
}
