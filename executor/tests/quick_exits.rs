//! Many short tasks leave nothing behind. In a process of its own, to count what it holds.

mod common;

use std::fs;

use common::{Node, config};
use futures::{StreamExt, stream};

const TASKS: usize = 100;
const AT_ONCE: usize = 8;

#[tokio::test]
async fn a_hundred_quick_exits_leave_nothing() {
    let node = Node::new();
    let one = async |number: usize| {
        let task = node.sh(&format!("exit {}", number % 3)).await;
        let exit = node.executor.wait(task).await.unwrap();
        assert_eq!(exit.code, Some(number as i32 % 3));
        let shim = node.pid(task, "shim");
        node.executor.remove(task).await.unwrap();
        shim
    };
    one(0).await; // so that the runtime has all the descriptors it keeps
    let descriptors = open_descriptors();
    let shims: Vec<i32> = stream::iter(0..TASKS)
        .map(one)
        .buffer_unordered(AT_ONCE)
        .collect()
        .await;
    let zombies: Vec<i32> = shims.into_iter().filter(|pid| is_own_child(*pid)).collect();
    assert!(zombies.is_empty(), "{zombies:?}");
    assert_eq!(open_descriptors(), descriptors);
    assert_eq!(
        fs::read_dir(node.dir.join("state/tasks")).unwrap().count(),
        0
    );
    // Tasks of other tests may be in the cgroup; each of ours took its own away (or remove failed).
    assert!(config(&node.dir).cgroup_root.exists());
}

fn open_descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

/// Zombies too.
fn is_own_child(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status
        .lines()
        .any(|line| line == format!("PPid:\t{}", std::process::id()))
}
