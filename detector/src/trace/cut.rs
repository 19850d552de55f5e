//! `detector trace cut`: a while out of traces, as a trace of its own. It opens with what stood when it begins, as segments do.

use std::{
    fs::File,
    io::{BufWriter, Write},
    path::PathBuf,
};

use anyhow::Context as _;
use clap::Args;
use jiff::Timestamp;

use super::{
    Item, Joiner, Next, Reader, Writer,
    command::{Input, open},
    line,
};
use crate::{
    context::standing::Standing,
    escape::escape,
    pipeline::Pipeline,
    record::{Body, BootNs, Record},
};

/// What to cut out.
#[derive(Args, Clone, Debug)]
pub struct Options {
    /// Traces in the order of time; - is standard input
    #[arg(value_name = "FILE", required = true)]
    pub files: Vec<PathBuf>,
    /// Begin with what happened at this time: 2026-11-25T13:00:00Z [default: with everything]
    #[arg(long, value_name = "TIME")]
    pub from: Option<Timestamp>,
    /// End with what happened at this time
    #[arg(long, value_name = "TIME")]
    pub to: Option<Timestamp>,
    /// The trace to write; there must be none of that name
    #[arg(short, long, value_name = "OUT")]
    pub output: PathBuf,
}

/// Cuts; false when something could not be read: what could be is there all the same.
///
/// # Errors
/// When a trace cannot be read, the output cannot be written, or is there already, or nothing happened in that time. Then there is
/// no output.
pub fn cut(options: &Options) -> anyhow::Result<bool> {
    let shown = || escape(&options.output.to_string_lossy());
    let file = File::options().write(true).create_new(true).open(&options.output).with_context(shown)?;
    let done = written(options, file);
    if done.is_err() {
        // The first error is the one that counts.
        let _ = std::fs::remove_file(&options.output);
    }
    done
}

fn written(options: &Options, file: File) -> anyhow::Result<bool> {
    let ns = |time: Timestamp| time.as_nanosecond();
    let mut cutter = Cutter::new(BufWriter::new(file), options.from.map(ns), options.to.map(ns));
    let (mut joiner, mut whole) = (Joiner::default(), true);
    'files: for path in &options.files {
        let Input { name, read, .. } = open(path)?;
        for item in Reader::new(read).with_context(|| escape(&name))? {
            match item.with_context(|| escape(&name))? {
                Item::Opening(record) => joiner.opening(record),
                Item::Record(record) => {
                    match joiner.next(&record) {
                        Next::Skip => continue,
                        Next::Push => {}
                        Next::Restart(opening) => cutter.begins(opening)?,
                    }
                    if cutter.push(record)? {
                        break 'files;
                    }
                }
                Item::Damage(damage) => {
                    whole &= !damage.is_loss();
                    eprintln!("{}", line(&name, &damage));
                }
            }
        }
    }
    let records = cutter.finish().with_context(|| escape(&options.output.to_string_lossy()))?;
    anyhow::ensure!(records > 0, "nothing happened in that time: `detector trace info` says what traces cover");
    eprintln!("{}: {records} records", escape(&options.output.to_string_lossy()));
    Ok(whole)
}

/// Passes over records until the time has come, and writes those that follow.
struct Cutter<W: Write> {
    /// Nanoseconds since the epoch.
    from: Option<i128>,
    to: Option<i128>,
    /// What is known of the stream before, until something is written.
    pipeline: Pipeline,
    standing: Standing,
    last: Option<(u64, BootNs)>,
    boot_time_ns: u64,
    out: Out<W>,
    records: u64,
}

enum Out<W: Write> {
    Waits(W),
    Writes(Box<Writer<W>>),
    /// It failed.
    Gone,
}

impl<W: Write> Cutter<W> {
    fn new(out: W, from: Option<i128>, to: Option<i128>) -> Self {
        Self {
            from,
            to,
            pipeline: Pipeline::new(),
            standing: Standing::default(),
            last: None,
            boot_time_ns: 0,
            out: Out::Waits(out),
            records: 0,
        }
    }

    /// A stream begins with the next record, behind these that open it.
    fn begins(&mut self, opening: Vec<Record>) -> anyhow::Result<()> {
        (self.pipeline, self.standing, self.last) = (Pipeline::new(), Standing::default(), None);
        opening.iter().for_each(|record| self.learn(record));
        self.out = match std::mem::replace(&mut self.out, Out::Gone) {
            // A trace of its own, behind the one of the stream before.
            Out::Writes(writer) => Out::Writes(self.begun(writer.finish()?)?),
            waits => waits,
        };
        Ok(())
    }

    /// A trace with the records that what is known comes from.
    fn begun(&self, out: W) -> anyhow::Result<Box<Writer<W>>> {
        let mut writer = Writer::new(out)?;
        if let Some((seq, time)) = self.last {
            for record in self.standing.records(self.pipeline.context(), seq, time) {
                writer.opening(&record)?;
            }
        }
        Ok(Box::new(writer))
    }

    fn learn(&mut self, record: &Record) {
        if let Body::Start(start) = &record.body {
            self.boot_time_ns = start.boot_time_ns;
        }
        // What it would tell is told by whoever replays.
        drop(self.pipeline.push(record));
        self.standing.observe(record);
        self.last = Some((record.seq, record.time));
    }

    /// Takes the next record; true when nothing that follows is wanted.
    fn push(&mut self, record: Record) -> anyhow::Result<bool> {
        if let Body::Start(start) = &record.body {
            self.boot_time_ns = start.boot_time_ns;
        }
        let at = record.time.wall(self.boot_time_ns);
        self.out = match std::mem::replace(&mut self.out, Out::Gone) {
            Out::Waits(out) if self.from.is_some_and(|from| at < from) => {
                self.learn(&record);
                self.out = Out::Waits(out);
                return Ok(false);
            }
            Out::Waits(out) => Out::Writes(self.begun(out)?),
            writes => writes,
        };
        // Records of the kernel are not in order, ticks are.
        if matches!(record.body, Body::Tick) && self.to.is_some_and(|to| at > to) {
            return Ok(true);
        }
        if let Out::Writes(writer) = &mut self.out {
            writer.push(&record)?;
            self.records += 1;
        }
        Ok(false)
    }

    /// How many records were written, those that it opens with aside.
    fn finish(self) -> anyhow::Result<u64> {
        if let Out::Writes(writer) = self.out {
            drop(writer.finish()?);
        }
        Ok(self.records)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        record::ChangeKind,
        sink,
        testing::{self, Actor, DIR, FILE, POD, SECOND, Stream, manifest},
    };

    /// The records of a cut, each with whether it opens the trace.
    fn cut(streams: &[&Stream], from: Option<u64>, to: Option<u64>) -> Vec<(bool, Record)> {
        let Body::Start(start) = &streams[0].records[0].body else { panic!() };
        let wall = |second: u64| BootNs(second * SECOND).wall(start.boot_time_ns);
        let mut out = Vec::new();
        let mut cutter = Cutter::new(&mut out, from.map(wall), to.map(wall));
        for stream in streams {
            cutter.begins(Vec::new()).unwrap();
            for record in &stream.records {
                if cutter.push(record.clone()).unwrap() {
                    break;
                }
            }
        }
        if cutter.finish().unwrap() == 0 {
            return Vec::new();
        }
        Reader::new(&out[..])
            .unwrap()
            .map(|item| match item.unwrap() {
                Item::Opening(record) => (true, record),
                Item::Record(record) => (false, record),
                Item::Damage(damage) => panic!("{damage}"),
            })
            .collect()
    }

    fn plant(stream: &mut Stream, writer: Actor) {
        let since = stream.now();
        stream.kernel(testing::open(writer, FILE, DIR, "/manifests/web.yaml"));
        stream.push(Body::Manifest(Box::new(manifest(ChangeKind::Added, Some(POD), since))));
    }

    /// A process is made at 100 s, plants at 110 s, and plants at 120 s.
    fn stream() -> Stream {
        let mut stream = Stream::new();
        let writer = Actor::host(60, 90);
        stream.kernel(testing::fork(Actor::host(50, 10), writer));
        stream.kernel(testing::exec(writer, Actor::host(50, 10), "/bin/writer", &["writer"]));
        for _ in 0..2 {
            stream.wait(10 * SECOND);
            stream.push(Body::Tick);
            plant(&mut stream, writer);
        }
        stream.wait(10 * SECOND);
        stream.push(Body::Tick);
        stream
    }

    #[test]
    fn a_cut_tells_what_was_told_in_its_time_and_knows_what_was_before() {
        let stream = stream();
        let mut pipeline = Pipeline::new();
        let told: Vec<_> = cut(&[&stream], Some(105), Some(115))
            .iter()
            .flat_map(|(opening, record)| pipeline.push(record).into_iter().filter(|_| !*opening).collect::<Vec<_>>())
            .map(|alert| sink::json(&alert).unwrap())
            .collect();
        let live: Vec<_> = stream.alerts().iter().map(|alert| sink::json(alert).unwrap()).collect();
        assert_eq!((told.len(), live.len()), (1, 2));
        assert_eq!(told[0], live[0]);
        assert!(told[0].contains("/bin/writer"), "{}", told[0]);
    }

    #[test]
    fn without_a_time_everything_is_cut_and_nothing_stands_before() {
        let stream = stream();
        let records: Vec<_> = stream.records.iter().map(|record| (false, record.clone())).collect();
        assert_eq!(cut(&[&stream], None, None), records);
        assert_eq!(cut(&[&stream], Some(1_000), None), Vec::new());
    }

    #[test]
    fn two_streams_are_two_traces_in_one_file() {
        let (first, mut second) = (stream(), stream());
        second.records.iter_mut().for_each(|record| record.time.0 += 1_000 * SECOND);
        let cut = cut(&[&first, &second], Some(125), None);
        let own: Vec<_> = cut.iter().filter(|(opening, _)| !opening).map(|(_, record)| record).collect();
        assert_eq!(own[0].time, first.records.last().unwrap().time);
        assert!(own[1..].iter().copied().eq(&second.records));
        // What opens the first one says nothing of the second.
        assert!(cut.iter().skip_while(|(opening, _)| *opening).all(|(opening, _)| !opening));
    }
}
