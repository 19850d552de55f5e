//! The report in a real browser: nothing from a trace is executed, nothing is loaded, and it can be read and used. Needs
//! Debian's package `chromium`; without it the test fails and says so.
#![expect(clippy::unwrap_used, reason = "a test helper that fails ends its test")]

use std::{
    fs,
    io::Read as _,
    net::TcpListener,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

// The helpers are the unit tests' own, and name the crate's modules as `crate::...`.
use detector::{alert, pipeline, record, report};
use serde_json::Value;

#[path = "../src/report/story.rs"]
mod story;
#[expect(dead_code, reason = "this test needs a part of it")]
#[path = "../src/testing.rs"]
mod testing;

/// A browser with a profile of its own, and a server that only counts who comes.
struct Browser {
    dir: tempfile::TempDir,
    server: String,
    visits: Arc<AtomicUsize>,
}

/// What the browser said.
struct Seen {
    /// The page after its scripts ran.
    dom: String,
    /// What would be in the console: refusals by the page's policy, errors of scripts.
    console: Vec<String>,
}

impl Browser {
    fn new() -> Self {
        let found = std::env::split_paths(&std::env::var_os("PATH").unwrap()).any(|dir| dir.join("chromium").is_file());
        assert!(
            found,
            "chromium is not installed, and this test renders pages in it. Type: cargo xtask setup (or apt-get install \
             --no-install-recommends chromium fonts-dejavu-core)"
        );
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let server = format!("http://{}", listener.local_addr().unwrap());
        let visits = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&visits);
        thread::spawn(move || {
            for visitor in listener.incoming().map_while(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                let mut visitor = visitor;
                let _ = visitor.read(&mut [0; 1024]);
            }
        });
        Self { dir: tempfile::tempdir().unwrap(), server, visits }
    }

    /// What an attacker would write to be executed, or to have something loaded.
    fn hostile(&self) -> String {
        let server = &self.server;
        format!(
            "</script></style></title><script>document.documentElement.dataset.owned=1;fetch('{server}/a')</script>\
             \"'><img src={server}/b onerror=\"document.documentElement.dataset.owned=2\">\
             <svg onload=document.documentElement.dataset.owned=3><link rel=stylesheet href={server}/c>\
             <iframe src={server}/d></iframe><a href=javascript:x()>x</a><meta http-equiv=refresh content='0;url={server}/e'>\
             <style>@import '{server}/f';</style><form action={server}/g><base href={server}/>\u{202e}\u{1b}[2J\0\u{feff}"
        )
    }

    /// The page stays where people can look at it.
    fn write(name: &str, page: &str) -> PathBuf {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("report");
        fs::create_dir_all(&dir).unwrap();
        let path = dir.join(name);
        fs::write(&path, page).unwrap();
        path
    }

    fn command(&self, path: &Path, args: &[&str]) -> std::process::Output {
        let mut chromium = Command::new("timeout");
        chromium.args(["--kill-after=5", "120", "chromium", "--headless", "--no-sandbox", "--disable-gpu"]);
        chromium.args(["--disable-quic", "--no-first-run", "--disable-background-networking"]);
        chromium.args(["--disable-component-update", "--disable-sync", "--hide-scrollbars", "--enable-logging=stderr"]);
        chromium.arg(format!("--user-data-dir={}", self.dir.path().display())).args(args);
        let output = chromium.arg(format!("file://{}", path.display())).output().unwrap();
        assert!(output.status.success(), "chromium: {}", String::from_utf8_lossy(&output.stderr));
        output
    }

    fn look(&self, path: &Path) -> Seen {
        let output =
            self.command(path, &["--allow-file-access-from-files", "--virtual-time-budget=10000", "--dump-dom"]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        let console = said.lines().filter(|line| line.contains("CONSOLE")).map(str::to_owned).collect();
        Seen { dom: String::from_utf8(output.stdout).unwrap(), console }
    }

    /// Loads a page into a frame of this width, runs `script` with `page` and `view` for its document and window, and
    /// returns what that yields.
    fn run(&self, page: &Path, width: u32, script: &str) -> Value {
        let frame = format!(
            "<!doctype html><body><iframe id=f width={width} height=800 src=\"{}\"></iframe><pre id=said></pre><script>
            document.getElementById('f').onload = async (event) => {{
              const view = event.target.contentWindow, page = view.document;
              const pause = () => new Promise((done) => setTimeout(done, 50));
              let said;
              try {{ said = await (async () => {{ {script} }})(); }} catch (error) {{ said = String(error); }}
              document.getElementById('said').textContent = 'said:' + JSON.stringify(said) + ':said';
            }};</script>",
            page.file_name().unwrap().to_str().unwrap()
        );
        let path = page.with_extension(format!("frame-{width}.html"));
        fs::write(&path, frame).unwrap();
        let dom = self.look(&path).dom;
        fs::remove_file(path).unwrap();
        let said = dom.split("id=\"said\">said:").nth(1).and_then(|rest| rest.split(":said").next());
        serde_json::from_str(said.unwrap_or_else(|| panic!("the frame said nothing: {dom}"))).unwrap()
    }

    fn visits(&self) -> usize {
        self.visits.load(Ordering::SeqCst)
    }
}

#[test]
fn nothing_that_an_attacker_chose_is_executed_or_loaded() {
    let browser = Browser::new();
    let hostile = browser.hostile();
    let page = story::page(&story::attack(&hostile));

    // First, that this test would see it: the same words as a page's own. (No policy forbids a page to lead elsewhere.)
    let staying = hostile.replace("<meta", "<x");
    let seen = browser.look(&Browser::write("control.html", &format!("<!doctype html><body>{staying}")));
    assert!(seen.dom.contains("data-owned=\""));
    assert!(browser.visits() > 0);

    // Were they markup in the report by a mistake of ours, its policy would still stop them.
    let before = browser.visits();
    let injected = page.replacen("</header>", &format!("{staying}</header>"), 1);
    let seen = browser.look(&Browser::write("injected.html", &injected));
    assert!(!seen.dom.contains("data-owned=\""));
    assert_eq!(browser.visits(), before);
    assert!(seen.console.iter().any(|line| line.contains("Content Security Policy")), "{:?}", seen.console);

    // The report itself: nothing was executed, nothing loaded, and nothing was even tried.
    let seen = browser.look(&Browser::write("hostile.html", &page));
    assert!(!seen.dom.contains("data-owned=\""));
    assert_eq!(browser.visits(), before);
    assert_eq!(seen.console, Vec::<String>::new());
    for element in ["<img", "<iframe", "<link", "<form action", "<base", "<svg onload", "<a href=\"j"] {
        assert!(!seen.dom.contains(element), "{element}");
    }
    assert_eq!(seen.dom.matches("<script").count(), 1);
    // Its own script did run, and the words can be read.
    assert!(seen.dom.contains("<form id=\"filter\" autocomplete=\"off\">"), "the filter is there");
    assert!(seen.dom.contains("&lt;img src=") && seen.dom.contains("<i>\\u{202e}</i>"));
}

#[test]
fn it_fits_a_telephone_and_a_desk_whatever_it_holds() {
    let browser = Browser::new();
    let long = format!("/{}\u{202e}", "x".repeat(700));
    for (name, stream) in [
        ("attack", story::attack("")),
        ("long", story::attack(&long)),
        ("busy", story::busy(220)),
        ("empty", story::node("")),
    ] {
        let path = Browser::write(&format!("{name}.html"), &story::page(&stream));
        for width in [360, 1280] {
            let script = "page.querySelectorAll('details').forEach((details) => { details.open = true; });
                await pause();
                return page.documentElement.scrollWidth;";
            assert_eq!(browser.run(&path, width, script), width, "{name}");
        }
    }
}

#[test]
fn findings_are_filtered_and_found_from_the_timeline() {
    let browser = Browser::new();
    let path = Browser::write("filter.html", &story::page(&story::attack("")));
    let script = "
        const form = page.getElementById('filter');
        const shown = () => [...page.querySelectorAll('article')].filter((one) => !one.hidden).length;
        const dots = () => [...page.querySelectorAll('svg a')].filter((dot) => view.getComputedStyle(dot).display !== 'none').length;
        const said = [[shown(), dots()]];
        const change = async (act) => {
          act();
          form.dispatchEvent(new view.Event('input'));
          await pause();
          said.push([shown(), dots()]);
        };
        await change(() => { form.elements.text.value = 'WEB-7c9f  7302'; });
        await change(() => { form.elements.text.value = 'no such words'; });
        said.push(!page.getElementById('nothing').hidden);
        await change(() => { form.elements.text.value = ''; form.elements.technique.value = 'static-pod'; });
        await change(() => { form.querySelector('[value=critical]').checked = false; });
        said.push(page.getElementById('shown').value);
        const third = page.getElementById('f3').closest('details');
        said.push(third.open);
        view.location.hash = '#f3';
        await pause();
        said.push(third.open);
        return said;";
    let said = browser.run(&path, 1280, script);
    assert_eq!(said, serde_json::json!([[6, 6], [1, 1], [0, 0], true, [2, 2], [1, 1], "1 of 6 shown", false, true]));
}

#[test]
fn printing_opens_every_finding_also_without_scripts() {
    let browser = Browser::new();
    let page = story::page(&story::attack(""));
    let (above, script) = page.split_once("<script>").unwrap();
    let below = script.split_once("</script>").unwrap().1;
    let still = format!("{above}{below}");
    let pages = |name: &str, page: &str| {
        let path = Browser::write(name, page);
        let pdf = path.with_extension("pdf");
        browser.command(&path, &["--no-pdf-header-footer", &format!("--print-to-pdf={}", pdf.display())]);
        // Page objects are not compressed.
        fs::read(pdf).unwrap().windows(12).filter(|bytes| bytes == b"/Type /Page\n").count()
    };
    let opened = pages(
        "print-open.html",
        &still.replace("<details>", "<details open>").replace("<details class", "<details open class"),
    );
    assert!(opened > 3, "{opened} pages");
    assert_eq!(pages("print-still.html", &still), opened);
    assert_eq!(pages("print.html", &page), opened);
}
