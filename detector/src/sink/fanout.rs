//! All sinks of an agent.

use std::{
    io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        mpsc::{SyncSender, TrySendError, sync_channel},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use twox_hash::XxHash3_64;

use super::{
    Render, Stdout,
    format::{journal, otlp, syslog as message},
    http, line, local,
    queue::{Counts, QUEUE, Queued, State},
    remote::{Delivery, Peer, Shared, collect},
    spec::{HttpBody, Kind, Remote, Spec, To},
    spool::Spool,
    syslog, tls,
};
use crate::{
    alert::Alert,
    confine::{self, Files},
    sink::spec,
};

/// How long sinks may take to deliver what waits when the agent ends.
const GRACE: Duration = Duration::from_secs(5);
/// And how long threads that hang are waited for after that.
const HANGING: Duration = Duration::from_secs(3);

/// Why a sink cannot be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("sink {0} is given twice")]
    Twice(String),
    #[error("sink {sink}: {source}")]
    Sink { sink: String, source: io::Error },
    #[error("sink {sink}: spool {}: {source}", dir.display())]
    Spool { sink: String, dir: PathBuf, source: io::Error },
}

/// The sinks of an agent: what is sent goes to each, and none waits for another.
#[derive(Default)]
pub struct Sinks(Vec<Sink>);

struct Sink {
    name: String,
    /// `None` once it has ended.
    queue: Option<SyncSender<Queued>>,
    counts: Arc<Counts>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Sinks {
    /// Starts them. `spool` is the directory below which each sink whose receiver may be away gets one of its own; without it
    /// alerts wait in memory. `colour` is for standard output.
    ///
    /// # Errors
    /// When a sink is given twice, or needs a file that cannot be used. A receiver that is away is no error.
    pub fn start(specs: &[Spec], spool: Option<&Path>, colour: bool) -> Result<Self, StartError> {
        let mut sinks = Self::default();
        for (at, spec) in specs.iter().enumerate() {
            let twice = |other: &&Spec| match (other.kind(), spec.kind()) {
                (Kind::Stdout(_), Kind::Stdout(_)) => true,
                _ => other.identity() == spec.identity(),
            };
            if specs.iter().take(at).find(twice).is_some() {
                return Err(StartError::Twice(spec.name()));
            }
            // Two ways of one host have one name each in figures.
            let same = sinks.0.iter().filter(|sink| sink.name.split('#').next() == Some(&spec.name())).count();
            let name = if same == 0 { spec.name() } else { format!("{}#{}", spec.name(), same + 1) };
            sinks.0.push(Sink::start(spec, name, spool, colour)?);
        }
        Ok(sinks)
    }

    /// Gives an alert to every sink. Never waits: a sink whose queue is full loses it, which is counted and said.
    ///
    /// # Errors
    /// When standard output is gone: nobody reads any more.
    pub fn send(&mut self, alert: Alert) -> io::Result<()> {
        let alert = Arc::new(alert);
        for sink in &mut self.0 {
            let Some(queue) = &sink.queue else { continue };
            // Counted first: the thread may be faster than this one.
            sink.counts.queue();
            match queue.try_send(Arc::clone(&alert)) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => sink.counts.overflow(&sink.name),
                Err(TrySendError::Disconnected(_)) => {
                    sink.counts.overflow(&sink.name);
                    sink.queue = None;
                    sink.join()?;
                }
            }
        }
        Ok(())
    }

    /// What became of all alerts so far, by sink.
    #[must_use]
    pub fn states(&self) -> Vec<State> {
        let state = |sink: &Sink| State { ended: sink.has_ended(), ..sink.counts.state(&sink.name) };
        self.0.iter().map(state).collect()
    }

    /// Ends them: what waits is delivered now or, where there is a spool, by the next agent.
    ///
    /// # Errors
    /// When standard output is gone.
    pub fn finish(mut self) -> io::Result<Vec<State>> {
        for sink in &mut self.0 {
            sink.queue = None;
        }
        let deadline = Instant::now() + GRACE + HANGING;
        let mut result = Ok(());
        for sink in &mut self.0 {
            while sink.threads.iter().any(|thread| !thread.is_finished()) && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(5));
            }
            result = result.and(sink.join());
            sink.counts.say_rest(&sink.name);
        }
        result.map(|()| self.states())
    }
}

impl Sink {
    fn start(spec: &Spec, name: String, spool: Option<&Path>, colour: bool) -> Result<Self, StartError> {
        let counts = Arc::<Counts>::default();
        let (queue, alerts) = sync_channel(QUEUE);
        let (given, of_name) = (Arc::clone(&counts), name.clone());
        let failed = |source| StartError::Sink { sink: name.clone(), source };
        let threads = match spec.kind() {
            Kind::Stdout(form) => {
                let out = Stdout::new(*form, colour);
                vec![spawn(Files::default(), move || local::stdout(&alerts, out, &given))]
            }
            Kind::File(file) => {
                let file = file.clone();
                vec![spawn(Files::default().writing(&file.path), move || {
                    local::file(&alerts, file, &of_name, &given);
                    Ok(())
                })]
            }
            Kind::Remote(remote) => {
                let peer = peer(remote).map_err(failed)?;
                let (spool, files) = open_spool(spec, remote, &name, spool)?;
                let delivering = reached(remote, files.clone());
                counts.found(spool.waiting());
                counts.bound(spool.bound());
                let shared = Arc::new(Shared::new(spool));
                let delivery = Delivery::new(peer, Arc::clone(&shared), given, name.clone());
                let (render, given) = (render(&remote.to), Arc::clone(&counts));
                vec![
                    spawn(files, move || {
                        collect(&alerts, &shared, &of_name, &given, &render, GRACE);
                        Ok(())
                    }),
                    spawn(delivering, move || {
                        delivery.run();
                        Ok(())
                    }),
                ]
            }
        };
        let threads = threads.into_iter().collect::<io::Result<Vec<_>>>().map_err(failed)?;
        Ok(Self { name, queue: Some(queue), counts, threads })
    }

    /// Whether a thread has ended before its time: nothing is delivered any more.
    fn has_ended(&self) -> bool {
        self.queue.is_none() || self.threads.iter().any(JoinHandle::is_finished)
    }

    /// What the threads that have ended say. Those that hang are left alone: the process is about to end.
    fn join(&mut self) -> io::Result<()> {
        let mut result = Ok(());
        for thread in self.threads.extract_if(.., |thread| thread.is_finished()) {
            let ended = thread.join().unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
            let named = |error: io::Error| io::Error::new(error.kind(), format!("sink {}: {error}", self.name));
            result = result.and(ended.map_err(named));
        }
        result
    }
}

/// A thread that works with these files alone.
fn spawn(
    files: Files,
    run: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> io::Result<JoinHandle<io::Result<()>>> {
    thread::Builder::new().name("sink".to_owned()).spawn(move || {
        confine::thread(&files);
        run()
    })
}

/// What it takes to reach a receiver beside the spool. Certificates and keys have been read.
fn reached(remote: &Remote, files: Files) -> Files {
    match &remote.to {
        To::Journald { .. } | To::Syslog(spec::Syslog { peer: spec::Peer::Unix(_), .. }) => files,
        To::Syslog(_) => files.resolving(),
        To::Http(http) => match &http.header_file {
            Some(file) => files.resolving().reading(file),
            None => files.resolving(),
        },
    }
}

fn peer(remote: &Remote) -> io::Result<Box<dyn Peer>> {
    Ok(match &remote.to {
        To::Journald { socket } => Box::new(syslog::Unix::journald(socket.clone())),
        To::Http(http) => Box::new(http::Client::new(http.clone())?),
        To::Syslog(to) => match &to.peer {
            spec::Peer::Unix(path) => Box::new(syslog::Unix::new(path.clone())),
            spec::Peer::Udp(host, port) => Box::new(syslog::Udp::new(host.clone(), *port)),
            spec::Peer::Tcp(host, port) => Box::new(syslog::Stream::new(host.clone(), *port, None)),
            spec::Peer::Tls(host, port, trust) => {
                Box::new(syslog::Stream::new(host.clone(), *port, Some(tls::client(trust)?)))
            }
        },
    })
}

fn render(to: &To) -> Render {
    match to {
        To::Journald { .. } => Box::new(journal::render),
        To::Http(http) => match http.body {
            HttpBody::Otlp => Box::new(|alert| otlp::render(alert).to_string().into_bytes()),
            HttpBody::Webhook { form, .. } => Box::new(move |alert| {
                let mut line = line(alert, form, false).unwrap_or_default().into_bytes();
                line.pop();
                line
            }),
        },
        To::Syslog(to) => {
            let (facility, payload, max, pid) = (to.facility, to.payload, to.max, std::process::id());
            Box::new(move |alert| message::render(alert, facility, payload, max, pid).into_bytes())
        }
    }
}

/// The spool, and the files that it is.
fn open_spool(spec: &Spec, remote: &Remote, name: &str, common: Option<&Path>) -> Result<(Spool, Files), StartError> {
    let own = || common.map(|common| common.join(directory(spec)));
    let Some(dir) = remote.spool.clone().or_else(own) else {
        return Ok((Spool::in_memory(remote.spool_size), Files::default()));
    };
    match Spool::open(&dir, remote.spool_size) {
        Ok(spool) => Ok((spool, Files::default().writing_into(&dir))),
        Err(source) => Err(StartError::Spool { sink: name.to_owned(), dir, source }),
    }
}

/// A spool's directory below the common one: readable, and different for different receivers.
fn directory(spec: &Spec) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || c == '.' { c } else { '-' };
    let name: String = spec.name().chars().take(80).map(plain).collect();
    format!("{name}-{:016x}", XxHash3_64::oneshot(spec.identity().as_bytes()))
}
