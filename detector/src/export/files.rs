//! `detector trace export`.

use std::{collections::VecDeque, io::Read, path::Path};

use anyhow::Context as _;

use super::{Options, run};
use crate::{
    escape::escape,
    trace::{
        Item, Joiner, Next, Reader,
        command::{Input, open},
        line,
    },
};

/// Exports the streams of all files, each record once; false when something could not be read.
///
/// # Errors
/// When a trace cannot be read, or the output cannot be written.
pub fn export(options: &Options) -> anyhow::Result<bool> {
    let mut files = options.files.iter();
    let mut reader: Option<(String, Reader<Box<dyn Read>>)> = None;
    let (mut joiner, mut ready) = (Joiner::default(), VecDeque::new());
    let mut whole = true;
    let records = std::iter::from_fn(|| {
        loop {
            if let Some(record) = ready.pop_front() {
                return Some(Ok(record));
            }
            let Some((name, items)) = &mut reader else {
                let path = files.next()?;
                match opened(path) {
                    Ok(opened) => reader = Some(opened),
                    // What is written so far is no answer to what was asked.
                    Err(error) => {
                        files = [].iter();
                        return Some(Err(error));
                    }
                }
                continue;
            };
            match items.next() {
                None => reader = None,
                Some(Ok(Item::Opening(record))) => joiner.opening(record),
                Some(Ok(Item::Record(record))) => match joiner.next(&record) {
                    Next::Skip => {}
                    Next::Push => ready.push_back(record),
                    Next::Restart(opening) => ready.extend(opening.into_iter().chain([record])),
                },
                Some(Ok(Item::Damage(damage))) => {
                    whole &= !damage.is_loss();
                    eprintln!("{}", line(name, &damage));
                }
                Some(Err(error)) => {
                    let error = anyhow::Error::new(error).context(escape(name));
                    (reader, files) = (None, [].iter());
                    return Some(Err(error));
                }
            }
        }
    });
    let summary = run(options.format, records, &options.output)?;
    Ok(whole && summary.damage == 0)
}

fn opened(path: &Path) -> anyhow::Result<(String, Reader<Box<dyn Read>>)> {
    let Input { name, read, .. } = open(path)?;
    let reader = Reader::new(read).with_context(|| escape(&name))?;
    Ok((name, reader))
}
