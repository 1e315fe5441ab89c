//! What of a task's output is kept and how it is read.

mod common;

use common::{DEADLINE, Node, eventually};
use swarmnet_executor::{LogQuery, LogStream};

#[tokio::test]
async fn both_streams_are_kept_with_their_times() {
    let node = Node::new();
    let before = jiff::Timestamp::now();
    let task = node.sh("echo one; echo two >&2; printf 'no newline'").await;
    node.executor.wait(task).await.unwrap();
    assert_eq!(
        node.output(task, LogStream::Stdout).await,
        "one\nno newline"
    );
    assert_eq!(node.output(task, LogStream::Stderr).await, "two");
    let records = node.records(task, LogQuery::default()).await;
    assert!(records.iter().all(|record| record.time >= before));
    assert_eq!(records.iter().filter(|record| record.partial).count(), 1);
}

#[tokio::test]
async fn tail_gives_the_last_records_and_since_the_later_ones() {
    let node = Node::new();
    let task = node
        .sh("i=0; while [ $i -lt 5000 ]; do i=$((i+1)); echo line $i; done")
        .await;
    node.executor.wait(task).await.unwrap();
    let all = node.records(task, LogQuery::default()).await;
    assert_eq!(all.len(), 5000);
    for tail in [0, 1, 3, 4999, 5000, 6000] {
        let query = LogQuery {
            tail: Some(tail),
            ..LogQuery::default()
        };
        let records = node.records(task, query).await;
        assert_eq!(
            records,
            all[all.len().saturating_sub(tail)..],
            "tail {tail}"
        );
    }
    let since = all[2500].time;
    let records = node
        .records(
            task,
            LogQuery {
                since: Some(since),
                ..LogQuery::default()
            },
        )
        .await;
    let first = all.iter().position(|record| record.time >= since).unwrap();
    assert_eq!(records, all[first..]);
}

/// Followers see all of it, whenever they come, through many files, and end with the task.
#[tokio::test]
async fn followers_lose_nothing_and_end_with_the_task() {
    let node = Node::new();
    let gate = node.dir.join("gate");
    // 24 MB: more than two files.
    let script = format!(
        "echo up; while ! [ -e {} ]; do sleep 0.01; done; yes {} | head -n 120000; echo end",
        gate.display(),
        "x".repeat(200),
    );
    let task = node.sh(&script).await;
    let follow = |tail| LogQuery {
        follow: true,
        tail,
        since: None,
    };
    let (from_start, from_now) = (follow(None), follow(Some(0)));
    node.wait_for_line(task, "up").await;
    let mut late = node.executor.logs(task, from_now).unwrap();
    let all = async { node.records(task, from_start).await };
    let first_of_late = async {
        std::fs::write(&gate, "").unwrap();
        late.next().await.unwrap().unwrap()
    };
    let both = async { tokio::join!(all, first_of_late) };
    let (all, first) = tokio::time::timeout(DEADLINE, both)
        .await
        .expect("the followers end");
    assert_eq!(first.message, "x".repeat(200).into_bytes());
    assert_eq!(all.len(), 120_002);
    assert_eq!(all.last().unwrap().message, b"end");
    assert!(
        all[1..120_001]
            .iter()
            .all(|record| record.message.len() == 200 && !record.partial)
    );
}

/// A task that writes without end is bounded on disk, and goes on.
#[tokio::test]
async fn the_log_is_bounded() {
    let node = Node::new();
    let task = node
        .sh("yes 0123456789012345678901234567890123456789012345678901234567890123")
        .await;
    let dir = node.task_dir(task);
    let sizes = || -> Vec<u64> {
        let entries = std::fs::read_dir(&dir).unwrap().flatten();
        let logs = entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("log."));
        logs.filter_map(|entry| entry.metadata().ok())
            .map(|meta| meta.len())
            .collect()
    };
    eventually("the first file is given up", || {
        !dir.join("log.1").exists() && dir.join("log.6").exists()
    })
    .await;
    let total: u64 = sizes().iter().sum();
    assert!(total < 64 << 20, "{total} bytes in {:?}", sizes());
    node.executor.remove(task).await.unwrap();
}
