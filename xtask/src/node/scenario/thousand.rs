//! A storm of containers.

use std::{sync::Arc, time::Instant};

use tokio::{sync::Semaphore, task::JoinSet};

use super::{
    super::{
        Options,
        cri::{Cri, Sandbox},
        daemons::Node,
        images::BUSYBOX,
        pods,
        watch::{Watch, is, titles},
    },
    Checks,
};

/// Pods that the containers are made in.
const PODS: u32 = 4;
/// Containers on their way at once: more than the machine has processors, so that it is never idle.
const AT_ONCE: usize = 16;

/// Containers start and are gone, as fast as the machine can.
pub fn thousand(node: &mut Node, options: &Options, checks: &mut Checks) -> anyhow::Result<()> {
    let mut sandboxes = Vec::new();
    for number in 0..PODS {
        sandboxes.push(node.run_pod(&pods::manifest(&format!("crowd-{number}"), pods::IDLE))?.sandbox()?);
    }
    let mut watch = Watch::start(node, &[])?;
    let started = Instant::now();
    let failures = node.runtime.block_on(storm(&node.cri, &sandboxes, options.containers));
    let seconds = started.elapsed().as_secs_f64();
    let count = options.containers;
    eprintln!("    {count} containers in {seconds:.0} s, {:.0} a second", f64::from(count) / seconds);
    let all_ran = || {
        anyhow::ensure!(failures.is_empty(), "{} did not; the first: {}", failures.len(), failures[0]);
        Ok(())
    };
    checks.check("every container started and was removed", all_ran());
    let rest = watch.rest()?;
    let execs: Vec<_> = rest.iter().filter(|alert| is(alert, "container-exec")).cloned().collect();
    let none = || {
        anyhow::ensure!(execs.is_empty(), "{} alerts: {}", execs.len(), titles(&execs));
        Ok(())
    };
    checks.check("none of them is an exec", none());
    let stats = watch.stop()?;
    let lost = stats["lost"].as_object().map_or(0, serde_json::Map::len);
    let nothing_lost = || {
        anyhow::ensure!(lost == 0, "lost: {}", stats["lost"]);
        Ok(())
    };
    checks.check("no event was lost", nothing_lost());
    let known = || {
        let want = serde_json::json!({"with_pod": count, "plain": 0, "unknown": 0});
        anyhow::ensure!(stats["first_execs"] == want, "first execs: {}, not {want}", stats["first_execs"]);
        Ok(())
    };
    checks.check("every first exec carries its pod", known());
    eprintln!("    stats: {stats}");
    Ok(())
}

/// Creates, starts and removes containers; what failed.
async fn storm(cri: &Cri, sandboxes: &[Sandbox], count: u32) -> Vec<String> {
    let turn = Arc::new(Semaphore::new(AT_ONCE));
    let mut all = JoinSet::new();
    for (number, sandbox) in (0..count).zip(sandboxes.iter().cycle()) {
        let (mut cri, sandbox, turn) = (cri.clone(), sandbox.clone(), Arc::clone(&turn));
        all.spawn(async move {
            let _turn = turn.acquire().await?;
            let id = cri.create(&sandbox, &format!("one-{number}"), BUSYBOX, &["/bin/true"], None).await?;
            let ran = async {
                cri.start(&id).await?;
                // Removed at once it may be killed before it has executed anything.
                let code = cri.ended(&id).await?;
                anyhow::ensure!(code == 0, "{id} ended with {code}");
                Ok(())
            };
            let ran = ran.await;
            cri.remove(&id).await?;
            ran
        });
    }
    let done = all.join_all().await;
    done.into_iter().filter_map(|one: anyhow::Result<()>| one.err().map(|error| format!("{error:#}"))).collect()
}
