//! What a trace covers, and what of it is missing.

use std::{
    collections::BTreeMap,
    io::{self, Write},
};

use super::{Damage, Item, dump, reader::Progress};
use crate::{
    escape::escape,
    record::{Body, BootNs, Loss, Record, Start},
};

/// Of each kind of trouble, so many are told one by one.
const TOLD: usize = 20;

/// What a trace covers.
#[derive(Default)]
pub struct Info {
    /// The last start record: the host.
    start: Option<Box<Start>>,
    /// How often an agent began.
    starts: u64,
    opening: u64,
    records: u64,
    kinds: BTreeMap<String, u64>,
    /// First and last sequence number.
    seqs: Option<[u64; 2]>,
    /// Earliest and latest time.
    times: Option<[BootNs; 2]>,
    last_time: BootNs,
    losses: Trouble,
    gaps: Trouble,
    damages: Trouble,
}

/// Things that are missing: the first ones in words, and how many there are.
#[derive(Default)]
struct Trouble {
    told: Vec<String>,
    count: u64,
}

impl Trouble {
    fn add(&mut self, what: impl FnOnce() -> String) {
        self.count += 1;
        if self.told.len() < TOLD {
            self.told.push(what());
        }
    }
}

impl Info {
    pub fn add(&mut self, item: &Item) {
        match item {
            Item::Opening(record) => {
                self.opening += 1;
                if let (None, Body::Start(start)) = (&self.start, &record.body) {
                    self.start = Some(start.clone());
                }
            }
            Item::Record(record) => self.record(record),
            Item::Damage(damage) if damage.is_loss() => self.damages.add(|| damage.to_string()),
            // `print` says that there is no end.
            Item::Damage(_) => {}
        }
    }

    /// Nothing was damaged.
    #[must_use]
    pub fn is_whole(&self) -> bool {
        self.damages.count == 0
    }

    fn record(&mut self, record: &Record) {
        self.records += 1;
        let name = dump::kind_name(&record.body);
        match self.kinds.get_mut(name) {
            Some(count) => *count += 1,
            None => drop(self.kinds.insert(name.to_owned(), 1)),
        }
        let began = matches!(record.body, Body::Start(_));
        if let Body::Start(start) = &record.body {
            self.start = Some(start.clone());
            self.starts += 1;
        }
        let [first, last] = self.seqs.unwrap_or([record.seq, record.seq.wrapping_sub(1)]);
        if !began && record.seq != last.wrapping_add(1) {
            let from = self.wall(self.last_time);
            let to = self.wall(record.time);
            self.gaps.add(|| format!("between {from} and {to}: sequence number {} follows {last}", record.seq));
        }
        self.seqs = Some([first, record.seq]);
        let [earliest, latest] = self.times.unwrap_or([record.time; 2]);
        self.times = Some([earliest.min(record.time), latest.max(record.time)]);
        self.last_time = record.time;
        if let Body::Loss(loss) = &record.body {
            let when = self.wall(record.time);
            self.losses.add(|| format!("by {when}: {}", lost(loss)));
        }
    }

    fn wall(&self, time: BootNs) -> String {
        self.start
            .as_ref()
            .map_or_else(|| format!("{} ns since boot", time.0), |start| dump::wall(start.boot_time_ns, time))
    }

    /// Writes it for people.
    ///
    /// # Errors
    /// When `out` fails.
    pub fn print(&self, out: &mut impl Write, progress: &Progress) -> io::Result<()> {
        let end = if progress.finished {
            "with its end"
        } else {
            "without an end (its recorder was killed, or still writes)"
        };
        writeln!(
            out,
            "  format     {}, kernel records of layout {}; {}, {end}",
            progress.format,
            progress.wire,
            blocks(progress)
        )?;
        match &self.start {
            Some(start) => {
                writeln!(out, "  host       {}, kernel {}", escape(&start.node), escape(&start.kernel))?;
                writeln!(out, "  agent      {}", escape(&start.agent_version))?;
            }
            None => writeln!(out, "  host       not known: the trace has no start record")?,
        }
        if self.starts > 1 {
            writeln!(out, "  starts     {}: the host is the last one's", self.starts)?;
        }
        if let (Some([earliest, latest]), Some([first, last])) = (self.times, self.seqs) {
            let seconds = (latest.0 - earliest.0) as f64 / 1e9;
            writeln!(out, "  time       {} to {} ({seconds:.3} s)", self.wall(earliest), self.wall(latest))?;
            writeln!(out, "  records    {}, sequence numbers {first} to {last}", self.records)?;
        } else {
            writeln!(out, "  records    none")?;
        }
        if self.opening > 0 {
            writeln!(out, "  opening    {} records of the state at its start", self.opening)?;
        }
        for (kind, count) in &self.kinds {
            writeln!(out, "    {kind:<14} {count}")?;
        }
        let each = progress.bytes as f64 / self.records.max(1) as f64;
        writeln!(out, "  bytes      {} ({each:.2} a record)", progress.bytes)?;
        self.completeness(out)
    }

    fn completeness(&self, out: &mut impl Write) -> io::Result<()> {
        let Some([earliest, latest]) = self.times else {
            writeln!(out, "  complete   nothing can be said: there are no records")?;
            return told(out, "what is damaged", &self.damages);
        };
        let span = format!("between {} and {}", self.wall(earliest), self.wall(latest));
        if self.losses.count + self.gaps.count + self.damages.count == 0 {
            return writeln!(out, "  complete   no record was lost {span}");
        }
        writeln!(out, "  incomplete {span} records were lost:")?;
        told(out, "what the agent could not take", &self.losses)?;
        told(out, "sequence numbers that are missing", &self.gaps)?;
        told(out, "what is damaged", &self.damages)
    }
}

fn told(out: &mut impl Write, what: &str, trouble: &Trouble) -> io::Result<()> {
    if trouble.count == 0 {
        return Ok(());
    }
    writeln!(out, "    {what}:")?;
    for line in &trouble.told {
        writeln!(out, "      {line}")?;
    }
    match trouble.count - trouble.told.len() as u64 {
        0 => Ok(()),
        more => writeln!(out, "      and {more} more"),
    }
}

fn lost(loss: &Loss) -> String {
    let hook = escape(&loss.hook);
    let what = if loss.alerting { ", which could have been alerts" } else { "" };
    if loss.skipped {
        return format!("the kernel skipped {} runs of hook {hook}; whether they mattered is not known", loss.lost);
    }
    format!("{} events of hook {hook}{what}", loss.lost)
}

fn blocks(progress: &Progress) -> String {
    let mut text = format!("{} blocks", progress.blocks);
    if progress.opening_blocks > 0 {
        text += &format!(" and {} of opening records", progress.opening_blocks);
    }
    if progress.traces > 1 {
        text += &format!(" in {} traces", progress.traces);
    }
    text
}

/// Damage, as a line for standard error.
#[must_use]
pub fn line(file: &str, damage: &Damage) -> String {
    format!("{}: {}", escape(file), escape(&damage.to_string()))
}
