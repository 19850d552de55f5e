//! The maps of secrets and of addresses of interest.

use std::collections::{BTreeMap, BTreeSet};

use aya::{
    Ebpf,
    maps::{Array, HashMap, MapData},
};
use detector_common::{
    ENDPOINTS_MAX, EndpointKey, RUNTIMES_MAX, SECRET_BITS, SECRETS_MAX, SERVERS_MAX, WatchKey, secret_bit, server,
    setting,
};

use super::{Kernel, KernelError, Plain, map_error, set_setting, take};
use crate::record::InodeKey;

const WORDS: usize = SECRET_BITS as usize / 64;

pub(super) struct Maps {
    secrets: HashMap<MapData, Plain<WatchKey>, u32>,
    words: Array<MapData, [u64; WORDS]>,
    endpoints: HashMap<MapData, Plain<EndpointKey>, u32>,
    servers: HashMap<MapData, u32, u32>,
    runtimes: HashMap<MapData, Plain<WatchKey>, u32>,
    /// What the kernel has.
    secrets_there: BTreeSet<InodeKey>,
    endpoints_there: BTreeMap<EndpointKey, u32>,
    servers_there: BTreeMap<u32, u32>,
    runtimes_there: BTreeSet<InodeKey>,
}

impl Maps {
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, KernelError> {
        let error = |name| move |source| map_error(name, source);
        Ok(Self {
            secrets: take(ebpf, "SECRETS")?.try_into().map_err(error("SECRETS"))?,
            words: take(ebpf, "SECRET_WORDS")?.try_into().map_err(error("SECRET_WORDS"))?,
            endpoints: take(ebpf, "ENDPOINTS")?.try_into().map_err(error("ENDPOINTS"))?,
            servers: take(ebpf, "SERVERS")?.try_into().map_err(error("SERVERS"))?,
            runtimes: take(ebpf, "RUNTIMES")?.try_into().map_err(error("RUNTIMES"))?,
            secrets_there: BTreeSet::new(),
            endpoints_there: BTreeMap::new(),
            servers_there: BTreeMap::new(),
            runtimes_there: BTreeSet::new(),
        })
    }
}

impl Kernel {
    /// Reports who opens exactly these for reading: files, and with inode 0 whole file systems; at most [`SECRETS_MAX`] of them.
    ///
    /// # Errors
    /// When the maps cannot be written.
    pub fn secrets(&mut self, secrets: &BTreeSet<InodeKey>) -> Result<(), KernelError> {
        let maps = &mut self.sense;
        let wanted: BTreeSet<InodeKey> = secrets.iter().take(SECRETS_MAX as usize).copied().collect();
        let error = |source| map_error("SECRETS", source);
        for inode in maps.secrets_there.difference(&wanted) {
            maps.secrets.remove(&Plain(super::key(inode))).map_err(error)?;
        }
        let mut words = [0_u64; WORDS];
        for inode in &wanted {
            let bit = secret_bit(&super::key(inode));
            if let Some(word) = words.get_mut(bit as usize / 64) {
                *word |= 1 << (bit % 64);
            }
            if !maps.secrets_there.contains(inode) {
                maps.secrets.insert(Plain(super::key(inode)), 1, 0).map_err(error)?;
            }
        }
        maps.words.set(0, words, 0).map_err(|source| map_error("SECRET_WORDS", source))?;
        maps.secrets_there = wanted;
        let any = !self.sense.secrets_there.is_empty();
        let reads = if any { 1 | u32::from(self.syscalls) << 1 } else { 0 };
        set_setting(&mut self.settings, setting::READS, reads)
    }

    /// Reports who connects to exactly these sockets, or to sockets in these directories; at most [`RUNTIMES_MAX`] of them.
    ///
    /// # Errors
    /// When the map cannot be written.
    pub fn runtimes(&mut self, asked: &BTreeSet<InodeKey>) -> Result<(), KernelError> {
        let maps = &mut self.sense;
        let wanted: BTreeSet<InodeKey> = asked.iter().take(RUNTIMES_MAX as usize).copied().collect();
        let error = |source| map_error("RUNTIMES", source);
        for inode in maps.runtimes_there.difference(&wanted) {
            maps.runtimes.remove(&Plain(super::key(inode))).map_err(error)?;
        }
        for inode in wanted.difference(&maps.runtimes_there) {
            maps.runtimes.insert(Plain(super::key(inode)), 1, 0).map_err(error)?;
        }
        maps.runtimes_there = wanted;
        Ok(())
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
        let wanted: BTreeMap<EndpointKey, u32> =
            endpoints.iter().take(ENDPOINTS_MAX as usize).map(|(key, flags)| (*key, *flags)).collect();
        let error = |source| map_error("ENDPOINTS", source);
        for key in maps.endpoints_there.keys().filter(|key| !wanted.contains_key(key)) {
            maps.endpoints.remove(&Plain(*key)).map_err(error)?;
        }
        for (key, flags) in wanted.iter().filter(|(key, flags)| maps.endpoints_there.get(key) != Some(*flags)) {
            maps.endpoints.insert(Plain(*key), *flags, 0).map_err(error)?;
        }
        maps.endpoints_there = wanted;
        let wanted: BTreeMap<u32, u32> =
            servers.iter().take(SERVERS_MAX as usize).map(|(pid, flags)| (*pid, *flags)).collect();
        let error = |source| map_error("SERVERS", source);
        for pid in maps.servers_there.keys().filter(|pid| !wanted.contains_key(pid)) {
            maps.servers.remove(pid).map_err(error)?;
        }
        for (pid, flags) in wanted.iter().filter(|(pid, flags)| maps.servers_there.get(pid) != Some(*flags)) {
            maps.servers.insert(*pid, *flags, 0).map_err(error)?;
        }
        maps.servers_there = wanted;
        let any = !self.sense.endpoints_there.is_empty() || !self.sense.servers_there.is_empty();
        let listens = self.sense.servers_there.values().any(|flags| flags & server::LISTENS != 0);
        set_setting(&mut self.settings, setting::CONNECTIONS, u32::from(any) | u32::from(listens) << 1)
    }
}
