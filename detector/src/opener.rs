//! What a thread may not do itself any more, done by one that was started before.

use std::{
    io,
    sync::mpsc::{Receiver, Sender, channel},
    thread,
};

use crate::confine;

/// The thread. It ends when this is dropped.
pub struct Opener<Q, A> {
    questions: Sender<Q>,
    answers: Receiver<A>,
}

impl<Q: Send + 'static, A: Send + 'static> Opener<Q, A> {
    /// Starts it. Threads that `open` starts have at most what it has.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn start(mut open: impl FnMut(Q) -> A + Send + 'static) -> io::Result<Self> {
        let (questions, asked) = channel();
        let (answer, answers) = channel();
        thread::Builder::new().name("opener".to_owned()).spawn(move || {
            confine::opener();
            for question in asked {
                if answer.send(open(question)).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { questions, answers })
    }

    /// Has it done, and waits for that.
    ///
    /// # Errors
    /// When the thread has panicked.
    pub fn open(&self, question: Q) -> io::Result<A> {
        let gone = |()| io::Error::other("the thread that opens sinks has ended");
        self.questions.send(question).map_err(|_| gone(()))?;
        self.answers.recv().map_err(|_| gone(()))
    }
}
