use super::*;

fn message(number: u64) -> Vec<u8> {
    format!("message {number} {}", "x".repeat(100)).into_bytes()
}

fn fill(spool: &mut Spool, numbers: std::ops::Range<u64>) {
    for number in numbers {
        spool.append(&[message(number)]);
    }
}

fn drain(spool: &mut Spool) -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    loop {
        let some = spool.read(7, usize::MAX);
        if some.is_empty() {
            return all;
        }
        all.extend(some);
    }
}

fn messages(numbers: std::ops::Range<u64>) -> Vec<Vec<u8>> {
    numbers.map(message).collect()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let mut files: Vec<_> = paths.filter(|path| path.extension().is_some_and(|end| end == "spool")).collect();
    files.sort();
    files
}

#[test]
fn messages_come_out_as_they_went_in_and_again_after_a_rewind() {
    let dir = tempfile::tempdir().unwrap();
    for mut spool in [Spool::in_memory(64 << 10), Spool::open(dir.path(), 64 << 10).unwrap()] {
        fill(&mut spool, 0..200);
        assert_eq!(spool.read(10, usize::MAX), messages(0..10));
        let mark = spool.mark();
        assert_eq!(spool.read(10, 1), messages(10..11));
        assert_eq!(spool.deliver(mark), 10);
        spool.rewind();
        assert_eq!(spool.waiting(), 190);
        assert_eq!(drain(&mut spool), messages(10..200));
        assert_eq!(spool.deliver(spool.mark()), 190);
        assert!(!spool.has_more());
        assert_eq!((spool.waiting(), spool.take_dropped()), (0, 0));
        fill(&mut spool, 200..201);
        assert_eq!(drain(&mut spool), messages(200..201));
    }
    assert_eq!(segments(dir.path()).len(), 1);
}

#[test]
fn a_restart_goes_on_where_delivery_was_written_down() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 64 << 10).unwrap();
    fill(&mut spool, 0..100);
    spool.read(60, usize::MAX);
    spool.deliver(spool.mark());
    spool.write_position();
    spool.read(5, usize::MAX);
    spool.deliver(spool.mark());
    drop(spool);
    let mut spool = Spool::open(dir.path(), 64 << 10).unwrap();
    // Five are delivered twice, none is missing.
    fill(&mut spool, 100..110);
    assert_eq!(drain(&mut spool), messages(60..110));
    assert!(spool.take_notes().is_empty());
}

#[test]
fn a_position_that_leads_nowhere_costs_nothing() {
    for text in ["", "1 5\n", "1 99999999\n", "77\n", "x y\n", "1 119"] {
        let dir = tempfile::tempdir().unwrap();
        fill(&mut Spool::open(dir.path(), 64 << 10).unwrap(), 0..50);
        fs::write(dir.path().join(POSITION), text).unwrap();
        assert_eq!(drain(&mut Spool::open(dir.path(), 64 << 10).unwrap()), messages(0..50), "{text:?}");
    }
}

#[test]
fn everything_delivered_leaves_no_message_behind_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 64 << 10).unwrap();
    fill(&mut spool, 0..100);
    drain(&mut spool);
    spool.deliver(spool.mark());
    spool.write_position();
    assert!(segments(dir.path()).is_empty());
    drop(spool);
    let mut spool = Spool::open(dir.path(), 64 << 10).unwrap();
    fill(&mut spool, 0..1);
    drop(spool);
    assert_eq!(drain(&mut Spool::open(dir.path(), 64 << 10).unwrap()), messages(0..1));
}

#[test]
fn the_oldest_give_way_at_the_bound_and_are_counted() {
    let dir = tempfile::tempdir().unwrap();
    let bound = 32 << 10;
    for mut spool in [Spool::in_memory(bound), Spool::open(dir.path(), bound).unwrap()] {
        fill(&mut spool, 0..1000);
        let kept = drain(&mut spool);
        let dropped = spool.take_dropped();
        assert!(dropped > 500, "{dropped}");
        assert_eq!(kept, messages(dropped..1000));
        assert_eq!(spool.waiting(), 1000 - dropped);
    }
    let size: u64 = segments(dir.path()).iter().map(|path| path.metadata().unwrap().len()).sum();
    assert!((bound / 2..=bound).contains(&size), "{size}");
}

#[test]
fn what_gave_way_while_it_was_on_its_way_is_not_counted_as_delivered_too() {
    let mut spool = Spool::in_memory(32 << 10);
    fill(&mut spool, 0..100);
    spool.read(50, usize::MAX);
    let mark = spool.mark();
    fill(&mut spool, 100..1000);
    let dropped = spool.take_dropped();
    assert_eq!(spool.deliver(mark), 0);
    assert_eq!(drain(&mut spool), messages(dropped..1000));
}

#[test]
fn a_torn_file_is_read_as_far_as_it_is_whole_at_every_length() {
    let whole = tempfile::tempdir().unwrap();
    fill(&mut Spool::open(whole.path(), 1 << 20).unwrap(), 0..5);
    let bytes = fs::read(&segments(whole.path())[0]).unwrap();
    let frame = bytes.len() / 5;
    for length in 0..bytes.len() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("00000000000000000001.spool"), &bytes[..length]).unwrap();
        let mut spool = Spool::open(dir.path(), 1 << 20).unwrap();
        fill(&mut spool, 9..10);
        let count = (length / frame) as u64;
        assert_eq!(drain(&mut spool), [messages(0..count), messages(9..10)].concat(), "{length}");
        let notes = spool.take_notes();
        assert_eq!(notes.is_empty(), length % frame == 0, "{notes:?}");
    }
}

#[test]
fn damage_in_one_file_costs_nothing_in_the_next() {
    for at in [0, 4, 200] {
        let dir = tempfile::tempdir().unwrap();
        fill(&mut Spool::open(dir.path(), 32 << 10).unwrap(), 0..50);
        let files = segments(dir.path());
        assert!(files.len() > 2);
        let mut bytes = fs::read(&files[0]).unwrap();
        bytes[at] ^= 0xff;
        fs::write(&files[0], bytes).unwrap();
        let mut spool = Spool::open(dir.path(), 32 << 10).unwrap();
        let notes = spool.take_notes();
        assert!(notes.len() == 1 && notes[0].contains("damaged from byte"), "{notes:?}");
        let read = drain(&mut spool);
        assert!(messages(0..50).ends_with(&read[read.len() - 20..]) && read.len() < 50, "{at}");
    }
}

#[test]
fn damage_that_happens_under_the_agent_is_counted_and_said() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 32 << 10).unwrap();
    fill(&mut spool, 0..50);
    let first = &segments(dir.path())[0];
    let mut bytes = fs::read(first).unwrap();
    let in_first = bytes.len() as u64 / segment::framed(&message(10));
    bytes[12] ^= 1;
    fs::write(first, bytes).unwrap();
    let read = drain(&mut spool);
    let lost = spool.take_dropped();
    assert!(lost >= in_first, "{lost} of {in_first}");
    assert_eq!(read, messages(lost..50));
    assert_eq!(spool.take_notes().len(), 1);
}

#[test]
fn two_sinks_never_share_a_spool() {
    let dir = tempfile::tempdir().unwrap();
    let first = Spool::open(dir.path(), 1 << 20).unwrap();
    let error = Spool::open(dir.path(), 1 << 20).err().unwrap().to_string();
    assert!(error.contains("another agent or another sink"), "{error}");
    drop(first);
    Spool::open(dir.path(), 1 << 20).unwrap();
}

#[test]
fn where_the_disk_refuses_messages_wait_in_memory_and_that_is_said_once() {
    let dir = tempfile::tempdir().unwrap();
    let mut spool = Spool::open(dir.path(), 64 << 10).unwrap();
    fill(&mut spool, 0..10);
    fs::remove_dir_all(dir.path()).unwrap();
    fill(&mut spool, 10..100);
    assert_eq!(drain(&mut spool), messages(0..100));
    let notes = spool.take_notes();
    assert!(notes.len() == 1 && notes[0].contains("refuses"), "{notes:?}");
    assert!(spool.mortal() > 50);
    fs::create_dir_all(dir.path()).unwrap();
    fill(&mut spool, 100..200);
    assert_eq!(drain(&mut spool), messages(100..200));
    assert_eq!(spool.take_notes(), ["the spool's disk takes alerts again"]);
}
