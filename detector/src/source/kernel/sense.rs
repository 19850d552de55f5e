//! The maps of secrets and of addresses of interest.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf, Pod,
    maps::{Array, HashMap, MapData},
};
use detector_common::{
    ENDPOINTS_MAX, EndpointKey, RUNTIMES_MAX, SECRET_BITS, SECRETS_MAX, SERVERS_MAX, WatchKey, secret_bit, server,
    setting,
};

use super::{Kernel, KernelError, Plain, map_error, set_setting, take};
use crate::record::InodeKey;

const WORDS: usize = SECRET_BITS as usize / 64;

/// A map of the kernel's that is to hold exactly what it is told, under keys made of these.
struct Exact<K, R> {
    name: &'static str,
    map: HashMap<MapData, R, u32>,
    raw: fn(K) -> R,
    /// What the kernel has.
    there: BTreeMap<K, u32>,
}

impl<K: Copy + Ord, R: Pod> Exact<K, R> {
    fn take(ebpf: &mut Ebpf, name: &'static str, raw: fn(K) -> R) -> Result<Self, KernelError> {
        let map = take(ebpf, name)?.try_into().map_err(|source| map_error(name, source))?;
        Ok(Self { name, map, raw, there: BTreeMap::new() })
    }

    /// What is not wanted any more goes first, since the map may be full.
    fn set(&mut self, wanted: BTreeMap<K, u32>) -> Result<(), KernelError> {
        let error = |source| map_error(self.name, source);
        for key in self.there.keys().filter(|key| !wanted.contains_key(key)) {
            self.map.remove(&(self.raw)(*key)).map_err(error)?;
        }
        for (key, value) in wanted.iter().filter(|(key, value)| self.there.get(key) != Some(*value)) {
            self.map.insert((self.raw)(*key), *value, 0).map_err(error)?;
        }
        self.there = wanted;
        Ok(())
    }
}

pub(super) struct Maps {
    secrets: Exact<InodeKey, Plain<WatchKey>>,
    words: Array<MapData, [u64; WORDS]>,
    endpoints: Exact<EndpointKey, Plain<EndpointKey>>,
    servers: Exact<u32, u32>,
    runtimes: Exact<InodeKey, Plain<WatchKey>>,
}

impl Maps {
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let inode = |inode: InodeKey| Plain(super::key(&inode));
        let words = take(ebpf, "SECRET_WORDS")?;
        Ok(Self {
            secrets: Exact::take(ebpf, "SECRETS", inode)?,
            words: words.try_into().map_err(|source| map_error("SECRET_WORDS", source))?,
            endpoints: Exact::take(ebpf, "ENDPOINTS", Plain)?,
            servers: Exact::take(ebpf, "SERVERS", |pid| pid)?,
            runtimes: Exact::take(ebpf, "RUNTIMES", inode)?,
        })
    }
}

impl Kernel {
    /// Reports who opens exactly these for reading: files, and with inode 0 whole file systems; at most [`SECRETS_MAX`] of them.
    ///
    /// # Errors
    /// When the maps cannot be written.
    pub fn secrets(&mut self, secrets: &BTreeSet<InodeKey>) -> Result<(), KernelError> {
        let wanted: BTreeMap<InodeKey, u32> =
            secrets.iter().take(SECRETS_MAX as usize).map(|inode| (*inode, 1)).collect();
        let mut words = [0_u64; WORDS];
        for inode in wanted.keys() {
            let bit = secret_bit(&super::key(inode));
            if let Some(word) = words.get_mut(bit as usize / 64) {
                *word |= 1 << (bit % 64);
            }
        }
        let any = !wanted.is_empty();
        self.sense.secrets.set(wanted)?;
        self.sense.words.set(0, words, 0).map_err(|source| map_error("SECRET_WORDS", source))?;
        let reads = if any { 1 | u32::from(self.syscalls) << 1 } else { 0 };
        set_setting(&mut self.settings, setting::READS, reads)
    }

    /// Reports who connects to exactly these sockets, or to sockets in these directories; at most [`RUNTIMES_MAX`] of them.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn runtimes(&mut self, asked: &BTreeSet<InodeKey>) -> Result<(), KernelError> {
        self.sense.runtimes.set(asked.iter().take(RUNTIMES_MAX as usize).map(|inode| (*inode, 1)).collect())
    }

    /// Reports connections from and to exactly these addresses, and of these processes what their flags say
    /// ([`detector_common::server`]); at most [`ENDPOINTS_MAX`] and [`SERVERS_MAX`] of them.
    ///
    /// # Errors
    /// When the maps cannot be written.
    pub fn endpoints(
        &mut self,
        endpoints: &BTreeMap<EndpointKey, u32>,
        servers: &BTreeMap<u32, u32>,
    ) -> Result<(), KernelError> {
        let maps = &mut self.sense;
        let endpoints = endpoints.iter().take(ENDPOINTS_MAX as usize);
        maps.endpoints.set(endpoints.map(|(key, flags)| (*key, *flags)).collect())?;
        let servers = servers.iter().take(SERVERS_MAX as usize);
        maps.servers.set(servers.map(|(pid, flags)| (*pid, *flags)).collect())?;
        let any = !maps.endpoints.there.is_empty() || !maps.servers.there.is_empty();
        let listens = maps.servers.there.values().any(|flags| flags & server::LISTENS != 0);
        set_setting(&mut self.settings, setting::CONNECTIONS, u32::from(any) | u32::from(listens) << 1)
    }
}
