//! What the agent itself takes, as Prometheus' own libraries call it.

use std::{fs::File, os::unix::fs::FileExt as _};

use procfs::{FromRead as _, WithCurrentSystemInfo as _, process::Stat};

/// Of this process; what cannot be read is missing.
#[derive(Debug, Default)]
pub struct Own {
    pub cpu_seconds: Option<f64>,
    pub resident: Option<u64>,
    pub virtual_size: Option<u64>,
    pub fds: Option<u64>,
    pub start_seconds: Option<f64>,
}

/// Where it is read from. Open from the beginning, since the thread that reads it may open nothing.
#[derive(Debug)]
pub struct Files {
    stat: Option<File>,
    fds: Option<File>,
    /// In seconds since the epoch.
    boot: Option<u64>,
}

impl Files {
    pub fn open() -> Self {
        let open = |path: &str| File::open(path).ok();
        Self { stat: open("/proc/self/stat"), fds: open("/proc/self/fd"), boot: procfs::boot_time_secs().ok() }
    }

    pub fn read(&self) -> Own {
        // The size is the number since Linux 6.2, and nothing before.
        let fds = self.fds.as_ref().and_then(|dir| dir.metadata().ok()).map(|dir| dir.len()).filter(|len| *len > 0);
        let mut text = [0; 2048];
        let stat = self.stat.as_ref().and_then(|file| file.read_at(&mut text, 0).ok());
        let Some(stat) = stat.and_then(|len| Stat::from_read(text.get(..len)?).ok()) else {
            return Own { fds, ..Own::default() };
        };
        let ticks = procfs::ticks_per_second() as f64;
        Own {
            cpu_seconds: Some((stat.utime + stat.stime) as f64 / ticks),
            resident: Some(stat.rss_bytes().get()),
            virtual_size: Some(stat.vsize),
            fds,
            start_seconds: self.boot.map(|boot| boot as f64 + stat.starttime as f64 / ticks),
        }
    }
}
