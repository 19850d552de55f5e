use std::time::*;
fn main() {
    let t = Instant::now();
    let mut k = detector::source::kernel::Kernel::attach(&Default::default()).unwrap();
    println!("{:?}", t.elapsed());
    for h in k.hooks() {
        println!("{} {:?} {}", h.name, h.backend, h.reason.clone().unwrap_or_default());
    }
    let s = std::fs::read_to_string("/proc/self/status").unwrap();
    println!(
        "{}",
        s.lines()
            .filter(|l| l.starts_with("VmRSS") || l.starts_with("VmHWM") || l.starts_with("Rss"))
            .collect::<Vec<_>>()
            .join(" ")
    );
    use std::os::unix::fs::MetadataExt;
    std::fs::create_dir_all("/tmp/w").unwrap();
    let m = std::fs::metadata("/tmp/w").unwrap();
    let dev = ((m.dev() >> 8) & 0xfff) << 20 | (m.dev() & 0xff);
    let set = [(detector::record::InodeKey { dev: dev as u32, ino: m.ino() }, 2u32)].into();
    k.watch(&set, 1).unwrap();
    let mut out = vec![];
    for _ in 0..std::env::args().nth(1).map_or(2, |a| a.parse().unwrap()) {
        std::thread::sleep(Duration::from_secs(1));
        k.drain(&mut out);
        for r in out.drain(..) {
            println!("{:?}", detector::decode::event(&r.bytes));
        }
    }
    println!("{:?}", k.lost());
}
