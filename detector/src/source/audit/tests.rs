//! Logs as kube-apiserver and logrotate write, rotate, copy and empty them: every line once, also over restarts.

use std::{
    fs::{self, File},
    io::Write as _,
    path::Path,
};

use super::{
    file::LINE_MAX,
    log::Log,
    position::{self, Place, Position, Positions},
    *,
};
use crate::testing;

/// A directory with a log in it, and an agent that follows it.
struct Desk {
    dir: tempfile::TempDir,
    log: Log,
    got: Vec<String>,
    said: Vec<LogState>,
}

impl Desk {
    /// An agent that finds the log with `content` in it.
    fn new(content: &str, whole: bool) -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("audit.log"), content).unwrap();
        let log = Log::new("/".into(), dir.path().join("audit.log"), Vec::new());
        let mut desk = Self { dir, log, got: Vec::new(), said: Vec::new() };
        desk.log.look(whole);
        desk.go_on();
        desk
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn append(&self, text: &str) {
        append(&self.path("audit.log"), text);
    }

    /// As kube-apiserver's logger does: renamed, then made anew.
    fn rotate(&self, name: &str) {
        fs::rename(self.path("audit.log"), self.path(name)).unwrap();
        fs::write(self.path("audit.log"), "").unwrap();
    }

    /// Looks and reads until there is no more.
    fn go_on(&mut self) {
        loop {
            self.log.look(false);
            // Little at a time, so that lines come in pieces.
            let mut budget = 7;
            let more =
                self.log.read(&mut budget, |line| self.got.push(String::from_utf8_lossy(line.bytes).into_owned()));
            self.said.extend(self.log.said());
            if !more {
                return;
            }
        }
    }

    fn position(&self) -> Vec<Position> {
        self.log.place().map(|place| place.files).unwrap_or_default()
    }

    /// The agent ends, and another one begins later.
    fn restart(&mut self, meanwhile: impl FnOnce(&Self)) {
        let known = self.position();
        meanwhile(self);
        self.log = Log::new("/".into(), self.path("audit.log"), known);
        self.said.clear();
        self.go_on();
    }

    #[track_caller]
    fn expect(&mut self, lines: &[&str]) {
        self.go_on();
        assert_eq!(self.got, lines);
    }

    /// Whether anything was said that is a finding.
    fn is_quiet(&self) -> bool {
        self.said
            .iter()
            .all(|state| matches!(state, LogState::Begun { .. } | LogState::Resumed { .. } | LogState::Awaited))
    }
}

fn append(path: &Path, text: &str) {
    File::options().append(true).create(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
}

#[test]
fn a_log_that_nobody_knows_is_read_from_its_end_and_a_line_that_is_not_whole_from_its_beginning() {
    let mut desk = Desk::new("old\nhal", false);
    assert_eq!(desk.said, [LogState::Begun { at: 4 }]);
    desk.append("f\nnew\n");
    desk.expect(&["half", "new"]);
    let mut desk = Desk::new("old\nhal", true);
    assert_eq!(desk.said, [LogState::Begun { at: 0 }]);
    desk.expect(&["old"]);
    desk.append("f\n");
    desk.expect(&["old", "half"]);
}

#[test]
fn a_log_that_is_made_later_is_read_from_its_beginning() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::new("/".into(), dir.path().join("audit.log"), Vec::new());
    let mut desk = Desk { dir, log, got: Vec::new(), said: Vec::new() };
    desk.expect(&[]);
    assert_eq!(desk.said, [LogState::Awaited]);
    fs::write(desk.path("audit.log"), "a\nb\n").unwrap();
    desk.expect(&["a", "b"]);
}

#[test]
fn rotation_loses_nothing_and_is_not_told_of() {
    let mut desk = Desk::new("", false);
    desk.append("a\n");
    desk.rotate("audit-2026-11-25T10-00-00.000.log");
    desk.append("b\n");
    desk.expect(&["a", "b"]);
    // Several between two looks, the last line of one written when it was renamed already.
    desk.append("c\nd");
    desk.rotate("audit-2026-11-25T10-00-01.000.log");
    append(&desk.path("audit-2026-11-25T10-00-01.000.log"), "d\n");
    desk.append("e\n");
    desk.rotate("audit-2026-11-25T10-00-02.000.log");
    desk.append("f\n");
    desk.rotate("audit-2026-11-25T10-00-03.000.log");
    desk.append("g\n");
    desk.go_on();
    desk.got.sort();
    desk.expect(&["a", "b", "c", "dd", "e", "f", "g"]);
    assert!(desk.is_quiet(), "{:?}", desk.said);
}

/// logrotate's `copytruncate`: what was written between the last look and the copy is in the copy alone.
#[test]
fn a_log_that_is_copied_and_emptied_loses_nothing() {
    let mut desk = Desk::new("", false);
    desk.append("a\n");
    desk.go_on();
    desk.append("b\nc\n");
    fs::copy(desk.path("audit.log"), desk.path("audit.log.1")).unwrap();
    File::options().write(true).open(desk.path("audit.log")).unwrap().set_len(0).unwrap();
    desk.expect(&["a", "b", "c"]);
    desk.append("d\n");
    desk.expect(&["a", "b", "c", "d"]);
    assert!(desk.is_quiet(), "{:?}", desk.said);
}

/// Whoever opened it without O_APPEND goes on where it was: what is before that is a hole.
#[test]
fn a_log_that_is_emptied_under_its_writer_is_told_and_read_on_behind_the_hole() {
    let mut desk = Desk::new("", false);
    let mut writer = File::options().write(true).open(desk.path("audit.log")).unwrap();
    let long = "x".repeat(100_000);
    writer.write_all(format!("{long}\n").as_bytes()).unwrap();
    desk.go_on();
    File::options().write(true).open(desk.path("audit.log")).unwrap().set_len(0).unwrap();
    writer.write_all(b"after\n").unwrap();
    desk.go_on();
    assert_eq!(desk.got.len(), 2);
    assert_eq!(desk.got[1].trim_start_matches('\0'), "after");
    assert!(matches!(desk.said.last(), Some(LogState::Truncated { had: 100_001, .. })), "{:?}", desk.said);
}

#[test]
fn a_log_that_is_emptied_or_written_anew_without_a_copy_is_told() {
    let mut desk = Desk::new("", false);
    desk.append("one\ntwo\n");
    desk.go_on();
    fs::write(desk.path("audit.log"), "").unwrap();
    desk.go_on();
    assert_eq!(desk.said.last(), Some(&LogState::Truncated { had: 8, has: 0 }));
    desk.append("three\n");
    desk.expect(&["one", "two", "three"]);
    // Longer than what was read of it, so that only its content says so.
    fs::write(desk.path("audit.log"), "other\nlines\nthan before\n").unwrap();
    desk.go_on();
    assert!(matches!(desk.said.last(), Some(LogState::Truncated { had: 6, .. })), "{:?}", desk.said);
    desk.expect(&["one", "two", "three", "other", "lines", "than before"]);
}

/// What `sed -i` does, and `rm`.
#[test]
fn a_log_that_is_replaced_is_told_and_what_goes_on_in_it_is_read() {
    let mut desk = Desk::new("", false);
    desk.append("one\ntwo\n");
    let mut writer = File::options().append(true).open(desk.path("audit.log")).unwrap();
    desk.go_on();
    fs::write(desk.path("new"), "one\n").unwrap();
    fs::rename(desk.path("new"), desk.path("audit.log")).unwrap();
    writer.write_all(b"three\n").unwrap();
    desk.expect(&["one", "two", "three", "one"]);
    assert_eq!(desk.said.last(), Some(&LogState::Replaced { had: 8 }));
}

#[test]
fn a_rotated_log_that_was_packed_is_no_finding() {
    let mut desk = Desk::new("", false);
    desk.append("a\n");
    desk.go_on();
    fs::remove_file(desk.path("audit.log")).unwrap();
    fs::write(desk.path("audit-2026-11-25T10-00-00.000.log.gz"), "packed").unwrap();
    fs::write(desk.path("audit.log"), "b\n").unwrap();
    desk.expect(&["a", "b"]);
    assert!(desk.is_quiet(), "{:?}", desk.said);
}

#[test]
fn an_agent_that_comes_after_goes_on_where_the_one_before_left_off() {
    let mut desk = Desk::new("", false);
    desk.append("a\nb");
    desk.go_on();
    desk.restart(|desk| desk.append("b\nc\n"));
    assert_eq!(desk.said, [LogState::Resumed { files: 1, at: 2 }]);
    desk.expect(&["a", "bb", "c"]);
    // Rotated twice while there was none.
    desk.restart(|desk| {
        desk.append("d\n");
        desk.rotate("audit-2026-11-25T10-00-00.000.log");
        desk.append("e\n");
        desk.rotate("audit-2026-11-25T10-00-01.000.log");
        desk.append("f\n");
    });
    desk.expect(&["a", "bb", "c", "d", "e", "f"]);
    // Older files that were read are not read again.
    desk.restart(|desk| desk.append("g\n"));
    desk.expect(&["a", "bb", "c", "d", "e", "f", "g"]);
    // Copied and emptied.
    desk.restart(|desk| {
        desk.append("h\n");
        fs::copy(desk.path("audit.log"), desk.path("audit.log.1")).unwrap();
        fs::write(desk.path("audit.log"), "i\n").unwrap();
    });
    desk.expect(&["a", "bb", "c", "d", "e", "f", "g", "h", "i"]);
    assert!(desk.is_quiet(), "{:?}", desk.said);
}

#[test]
fn what_was_not_read_and_is_gone_is_told() {
    let mut desk = Desk::new("", false);
    desk.append("a\n");
    desk.go_on();
    desk.restart(|desk| {
        desk.append("b\n");
        fs::remove_file(desk.path("audit.log")).unwrap();
        fs::write(desk.path("audit.log"), "c\n").unwrap();
    });
    assert!(desk.said.contains(&LogState::Lost), "{:?}", desk.said);
    desk.expect(&["a", "c"]);
}

#[test]
fn a_log_that_is_not_there_when_the_agent_comes_after_is_remembered() {
    let mut desk = Desk::new("", false);
    desk.append("a\n");
    desk.go_on();
    desk.restart(|desk| fs::rename(desk.path("audit.log"), desk.path("away")).unwrap());
    let known = desk.position();
    assert_eq!(known.len(), 1, "an agent after that one knows as much");
    fs::rename(desk.path("away"), desk.path("audit.log")).unwrap();
    desk.append("b\n");
    desk.expect(&["a", "b"]);
}

#[test]
fn what_is_no_file_is_said_once_and_nobody_waits_for_it() {
    let dir = tempfile::tempdir().unwrap();
    nix::unistd::mkfifo(&dir.path().join("audit.log"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let log = Log::new("/".into(), dir.path().join("audit.log"), Vec::new());
    let mut desk = Desk { dir, log, got: Vec::new(), said: Vec::new() };
    for _ in 0..3 {
        desk.go_on();
    }
    let [LogState::Unreadable(why)] = &desk.said[..] else { panic!("{:?}", desk.said) };
    assert!(why.contains("a fifo"), "{why}");
}

#[test]
fn a_line_that_is_too_long_is_cut_and_those_behind_it_are_whole() {
    let mut desk = Desk::new("", false);
    desk.append(&format!("a\n{}\nb\n", "x".repeat(3 * LINE_MAX)));
    let mut got = Vec::new();
    let mut budget = usize::MAX;
    desk.log.read(&mut budget, |line| got.push((line.bytes.len(), line.whole, line.offset, line.number)));
    let behind = 2 + 3 * LINE_MAX as u64 + 1;
    assert_eq!(got, [(1, true, 0, Some(1)), (LINE_MAX, false, 2, Some(2)), (1, true, behind, Some(3))]);
}

#[test]
fn an_agent_that_ends_within_a_line_that_is_too_long_does_not_take_its_rest_for_one() {
    let mut desk = Desk::new("", false);
    desk.append(&"x".repeat(2 * LINE_MAX));
    let mut budget = usize::MAX;
    desk.log.read(&mut budget, |_| {});
    desk.restart(|desk| desk.append("rest\nb\n"));
    desk.expect(&["b"]);
}

/// Positions that are made up are none, and the log is followed all the same.
#[test]
fn a_position_that_no_file_has_holds_nothing_up() {
    for offset in [3, 1 << 40, u64::MAX] {
        let mut desk = Desk::new("a\n", true);
        let known = Position {
            ino: 1,
            offset,
            lines: Some(u64::MAX),
            within: false,
            ended: false,
            tail: 7,
            modified: i64::MAX,
        };
        desk.log = Log::new("/".into(), desk.path("audit.log"), vec![known]);
        desk.got.clear();
        desk.append("b\n");
        desk.expect(&["a", "b"]);
        assert!(desk.said.contains(&LogState::Lost), "{:?}", desk.said);
    }
}

#[test]
fn positions_are_read_as_they_were_written_and_what_is_none_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(position::read(dir.path()).unwrap(), Positions::default());
    let at = Position { ino: 7, offset: 9, lines: Some(2), within: true, ended: false, tail: u64::MAX, modified: -1 };
    let positions = Positions { logs: vec![Place { path: "/a".to_owned(), files: vec![at] }] };
    position::write(dir.path(), &positions).unwrap();
    assert_eq!(position::read(dir.path()).unwrap(), positions);
    for bad in ["", "{", "[]", "\0\0\0"] {
        fs::write(dir.path().join(position::NAME), bad).unwrap();
        assert!(position::read(dir.path()).is_err());
    }
}

/// The whole of it, in its thread: what was told is not told again, and what was taken and not told is.
#[test]
fn a_position_is_kept_when_everything_before_it_was_told() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    fs::write(&path, "").unwrap();
    let options = Options {
        logs: vec![path.clone()],
        find: false,
        whole: true,
        state: Some(dir.path().join("state")),
        proc: "/proc".into(),
    };
    let line = |id: u32| {
        format!(
            "{{\"kind\":\"Event\",\"apiVersion\":\"audit.k8s.io/v1\",\"auditID\":\"{id}\",\"stage\":\"ResponseComplete\",\"verb\":\"delete\"}}\n"
        )
    };
    let take = |logs: &mut AuditLogs, count: usize| {
        let (mut ids, mut warnings) = (Vec::new(), Vec::new());
        let since = Instant::now();
        while ids.len() < count && since.elapsed() < Duration::from_secs(60) {
            ids.extend(logs.poll(&mut warnings).into_iter().filter_map(|body| match body {
                Body::Audit(event) => Some(event.id),
                _ => None,
            }));
            thread::sleep(Duration::from_millis(1));
        }
        (ids, warnings)
    };
    let mut logs = AuditLogs::start(&options).unwrap();
    append(&path, &(line(1) + "none\nneither\n" + &line(2)));
    let (ids, warnings) = take(&mut logs, 2);
    assert_eq!(ids, ["1", "2"]);
    assert_eq!(warnings.len(), 1, "said once: {warnings:?}");
    assert!(warnings[0].contains("audit.log, byte ") && warnings[0].contains("(line 2): no JSON"), "{warnings:?}");
    assert_eq!(logs.counts().unusable, 2);
    logs.told();
    append(&path, &line(3));
    assert_eq!(take(&mut logs, 1).0, ["3"]);
    drop(logs);
    let mut logs = AuditLogs::start(&options).unwrap();
    append(&path, &line(4));
    assert_eq!(take(&mut logs, 2).0, ["3", "4"], "what was not told is told again, and what was is not");
    // A flood comes whole and in order, however slowly it is taken.
    let flood: String = (10..3000).map(line).collect();
    append(&path, &flood);
    let (ids, _) = take(&mut logs, 2990);
    assert_eq!(ids, (10..3000).map(|id: u32| id.to_string()).collect::<Vec<_>>());
}

#[test]
fn one_file_under_two_names_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("audit.log");
    fs::write(&path, "").unwrap();
    fs::hard_link(&path, dir.path().join("other.log")).unwrap();
    let logs = vec![path.clone(), dir.path().join("other.log")];
    let options = Options { logs, proc: "/proc".into(), ..Options::default() };
    let mut worker = Worker::new(options);
    worker.look();
    assert_eq!(worker.logs.len(), 1);
}

/// Whatever is done to a log, in any order, by whoever looks when: each line once, in order.
#[test]
fn no_order_of_rotations_copies_restarts_and_looks_loses_or_repeats_a_line() {
    for seed in 1..60 {
        let mut noise = testing::Noise(seed);
        let mut next = |of: u64| noise.next() % of;
        let mut desk = Desk::new("", true);
        let mut lines = Vec::new();
        let mut done = Vec::new();
        for step in 0..40 {
            let what = next(8);
            done.push(what);
            match what {
                0..3 => {
                    for _ in 0..=next(3) {
                        let line = format!("{} {}", lines.len(), "x".repeat(next(30) as usize));
                        desk.append(&format!("{line}\n"));
                        lines.push(line);
                    }
                }
                // As kube-apiserver rotates: only what holds something.
                3 if fs::metadata(desk.path("audit.log")).unwrap().len() > 0 => {
                    desk.rotate(&format!("audit-2026-11-25T10-00-{step:02}.000.log"));
                }
                4 => {
                    // In pieces, with a look in between.
                    let line = format!("{} in pieces", lines.len());
                    let (first, second) = line.split_at(4);
                    desk.append(first);
                    desk.go_on();
                    desk.append(&format!("{second}\n"));
                    lines.push(line);
                }
                5 => desk.restart(|_| {}),
                _ => desk.go_on(),
            }
        }
        desk.go_on();
        assert_eq!(desk.got, lines, "seed {seed}: {done:?}");
        assert!(desk.is_quiet(), "seed {seed}: {done:?}: {:?}", desk.said);
    }
}

/// The same with logrotate's `copytruncate`, of which each look sees at most what came after several.
#[test]
fn no_order_of_copies_restarts_and_looks_loses_or_repeats_a_line() {
    for seed in 1..40 {
        let mut noise = testing::Noise(seed);
        let mut next = |of: u64| noise.next() % of;
        let mut desk = Desk::new("", true);
        let (mut lines, mut done, mut copies) = (Vec::new(), Vec::new(), 0_u32);
        for _ in 0..30 {
            let what = next(7);
            done.push(what);
            match what {
                0..3 => {
                    let line = format!("line {}", lines.len());
                    desk.append(&format!("{line}\n"));
                    lines.push(line);
                }
                // Once something of it was read: until then nothing says which copy it is.
                3 if desk.position().last().is_some_and(|position| position.offset > 0) => {
                    for n in (1..=copies).rev() {
                        fs::rename(desk.path(&format!("audit.log.{n}")), desk.path(&format!("audit.log.{}", n + 1)))
                            .unwrap();
                    }
                    copies += 1;
                    fs::copy(desk.path("audit.log"), desk.path("audit.log.1")).unwrap();
                    File::options().write(true).open(desk.path("audit.log")).unwrap().set_len(0).unwrap();
                }
                4 => desk.restart(|_| {}),
                _ => desk.go_on(),
            }
        }
        desk.go_on();
        assert_eq!(desk.got, lines, "seed {seed}: {done:?}");
    }
}
