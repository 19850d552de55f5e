//! What `--help` says beside the options, and the scripts by which shells complete them.

use std::{io, io::Write as _, process::ExitCode};

use clap::CommandFactory as _;

use super::Cli;
use crate::trace::command::is_broken_pipe;

/// Widest help, in characters: as wide as the terminal is, up to this.
pub const WIDTH: usize = 110;

// Headings above options.
pub const ALERTS: &str = "Alerts";
pub const CHOOSING: &str = "Choosing what is told";
pub const JUDGING: &str = "Judging anew";
pub const RECORDING: &str = "Recording";
pub const REFUSING: &str = "Refusing";

pub const DETECTOR: &str = "\
Examples:
  detector run --manifest-dir /tmp/manifests   try it, without Kubernetes
  detector run --record /var/lib/detector      watch a node, and keep what happens
  detector drill static-pod                    prove it: plant a harmless manifest
  detector replay /var/lib/detector/*.trace    tell it again, anywhere
  detector explain static-pod                  what an alert means, and what to do
  detector doctor                              what works on this kernel

Exit status: 0 fine, 1 failed, 2 wrong usage; 3 when `replay --fail-on` found
something. `detector COMMAND --help` has each command's options and examples.";

pub const RUN: &str = "\
Examples:
  detector run
      what kubelets here read, to standard output, until it is interrupted
  detector run --config /etc/detector/config.yaml
      everything by a file, which is read again when it changes
  detector run --record /var/lib/detector --output stdout:json --output syslog:
  detector run --output 'syslog+tls://logs.example?ca=/etc/detector/ca.pem' \\
               --spool /var/spool/detector
  detector run --deny static-pod --trust /usr/bin/kubeadm

Needs root, or CAP_BPF, CAP_PERFMON, CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH.
SIGTERM and SIGINT end it; SIGHUP makes it read --config again.
Exit status: 0 when it was ended, 1 when it failed, 2 for wrong usage.";

pub const RECORD: &str = "\
Examples:
  detector record -o incident.trace         until it is interrupted
  detector replay incident.trace            what it tells
  detector run --record /var/lib/detector   for good: the latest of it, beside alerts

Needs root, as `detector run` does.
Exit status: 0 when it was ended, 1 when it failed, 2 for wrong usage.";

pub const REPLAY: &str = "\
Examples:
  detector replay /var/lib/detector/*.trace
  detector replay evidence/*.trace --report report.html
  detector replay node.trace --pod shop/web --from 2026-11-25T13:00:00Z
  detector replay node.trace --speed 10x        watch it happen, ten times as fast
  detector replay node.trace --fail-on high     for scripts
  ssh node cat incident.trace | detector replay -

Exit status: 0 fine, 1 when a trace is damaged or cannot be read, 2 for wrong
usage, 3 when --fail-on found something.";

pub const DOCTOR: &str = "\
Examples:
  sudo detector doctor
  sudo detector doctor --hooks kprobe       what that way to attach would give

Takes the options of `detector run`: it looks at what that would watch.
Exit status: 0 when changes of manifests are detected and attributed, 1 when not.";

pub const MATRIX: &str = "\
Examples:
  sudo detector matrix
  sudo detector matrix --format html > matrix.html
  detector matrix --trace /var/lib/detector/*.trace --format json

With --trace it says what the recorded node covered, and what was found there.
Exit status: 0 fine, 1 when a trace is damaged or cannot be read, 2 for wrong
usage.";

pub const DRILL: &str = "\
Examples:
  detector drill static-pod --manifest-dir /tmp/manifests
  detector drill container-exec
  detector drill malicious-pause-container
  detector drill supply-chain-compromise
  detector drill detector-tampering

Needs root. Whatever it makes it takes away. It runs an agent of its own; one
that runs already sees the same acts, and tells its sinks.
Exit status: 0 when every alert came and named who did it, 1 when not.";

pub const EXPLAIN: &str = "\
Examples:
  detector explain                          every technique
  detector explain static-pod               one of them
  detector explain T1609                    by the number in an alert
  detector explain static-pod --format json | jq -r .here[].hook

As root it attaches the hooks for a moment, and says which of them work here.
Exit status: 0 fine, 2 when no technique is called so.";

pub const CONFIG: &str = "\
Examples:
  detector config show > config.yaml        every key with its default
  detector config check config.yaml         where it is wrong: line and column
  detector config schema > schema.json      for editors

Exit status: 0 fine, 1 when the configuration is wrong.";

pub const TRACE: &str = "\
Examples:
  detector trace info *.trace
  detector trace dump node.trace | jq 'select(.body.kind == \"manifest\")'
  detector trace cut evidence/*.trace --from 2026-11-25T13:00:00Z --to 2026-11-25T13:05:00Z -o five-minutes.trace
  detector trace export node.trace --format parquet -o node.parquet
  detector trace export node.trace --format perfetto -o node.pftrace

Exit status: 0 fine, 1 when a trace is damaged or cannot be read.";

pub const COMPLETIONS: &str = "\
Examples:
  source <(detector completions bash)       for this shell
  detector completions bash > /usr/share/bash-completion/completions/detector
  detector completions zsh > /usr/share/zsh/vendor-completions/_detector
  detector completions fish > ~/.config/fish/completions/detector.fish

The Debian package has those of bash, zsh and fish.";

pub const OUTPUT: &str = "\
Where alerts go, and how; may be given several times, and none waits for another
[default: stdout:pretty on a terminal, stdout:json elsewhere]

  stdout:pretty | stdout:json | stdout:ocsf | stdout:falco
  file:///PATH?rotate=10MiB&keep=5&format=json|ocsf|falco
  syslog:  syslog+unix:///PATH                  RFC 5424; /dev/log
  syslog+udp://HOST:514  syslog+tcp://HOST:601
  syslog+tls://HOST:6514?ca=FILE&cert=FILE&key=FILE
      all of them: &format=json|cef &facility=authpriv &max=8096
  journald:
  otlp+http://HOST:4318  otlp+https://HOST:4318
  webhook+http://HOST/PATH  webhook+https://HOST/PATH
      &format=json|ocsf|falco &batch=N &query=...
      both: &header=NAME:VALUE &header_file=FILE
      https: &ca= &cert= &key=

Of those whose receiver may be away: &spool=DIR &spool_size=64MiB.
In values, & is %26, + is %2B, # is %23 and % is %25.";

/// Prints the script.
///
/// # Errors
/// When standard output is gone.
pub fn completions(shell: clap_complete::Shell) -> anyhow::Result<ExitCode> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "detector", &mut script);
    match io::stdout().lock().write_all(&script).map_err(anyhow::Error::from) {
        Err(error) if !is_broken_pipe(&error) => Err(error),
        _ => Ok(ExitCode::SUCCESS),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every command, hidden ones aside.
    fn commands(of: &clap::Command) -> Vec<clap::Command> {
        let shown = of.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help");
        shown.flat_map(|command| std::iter::once(command.clone()).chain(commands(command))).collect()
    }

    #[test]
    fn every_command_says_what_it_does_and_gives_examples_that_are_taken() {
        let mut root = Cli::command();
        root.build();
        for command in root.get_subcommands().filter(|command| !command.is_hide_set() && command.get_name() != "help") {
            let name = command.get_name();
            assert!(command.get_about().is_some(), "{name}");
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(after.starts_with("Examples:"), "{name} has no examples");
        }
        for command in commands(&root) {
            for argument in command.get_arguments().filter(|argument| !argument.is_hide_set()) {
                assert!(argument.get_help().is_some(), "{} {}", command.get_name(), argument.get_id());
            }
        }
        // What stands in the examples is a command line, up to what is said of it, redirections and pipes.
        let texts = [DETECTOR, RUN, RECORD, REPLAY, DOCTOR, MATRIX, DRILL, EXPLAIN, CONFIG, TRACE, COMPLETIONS];
        let joined = texts.join("\n").replace("\\\n", " ");
        let lines = joined.lines().filter_map(|line| {
            let line = line.trim().trim_start_matches("sudo ").trim_start_matches("source <(");
            line.starts_with("detector ").then_some(line)
        });
        let mut taken = 0;
        for line in lines {
            let line = line.split(" | ").next().unwrap_or_default().split([')', '>']).next().unwrap_or_default();
            let words = line.split("   ").next().unwrap_or_default();
            let joined = line.replace("'", "");
            let words = if line.contains("--spool") { joined.as_str() } else { words };
            let words: Vec<_> = words.split_whitespace().map(|word| word.trim_matches('\'')).collect();
            if let Err(error) = Cli::command().try_get_matches_from(&words) {
                panic!("{words:?}: {error}");
            }
            taken += 1;
        }
        assert!(taken > 25, "{taken}");
    }

    #[test]
    fn help_fits_a_terminal_of_eighty_characters() {
        let mut root = Cli::command().term_width(80);
        root.build();
        for mut command in std::iter::once(root.clone()).chain(commands(&root)) {
            for help in [command.render_help(), command.render_long_help()] {
                for line in help.to_string().lines() {
                    assert!(line.chars().count() <= 80, "{}: {line}", command.get_name());
                }
            }
        }
    }

    #[test]
    fn completions_know_every_command() {
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "detector", &mut script);
            let script = String::from_utf8(script).unwrap();
            for command in commands(&Cli::command()) {
                assert!(script.contains(command.get_name()), "{shell}: {}", command.get_name());
            }
        }
    }
}
