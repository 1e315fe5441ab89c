//! The life of a task: start, exit, stop, and the agent's and the shim's deaths in between.

mod common;

use std::{fs, os::unix::process::ExitStatusExt, process::Command, time::Duration};

use common::{DEADLINE, Node, assignment, eventually, runs, sh, term};
use model::TaskId;
use swarmnet_executor::{
    AdoptedState, ExecError, LogStream, ProcessExecutor, SHIM_COMMAND, StopSignal,
};

#[tokio::test]
async fn exit_status_and_signal_are_reported() {
    let node = Node::new();
    let task = node.sh("exit 7").await;
    let exit = node.executor.wait(task).await.unwrap();
    assert_eq!((exit.code, exit.signal, exit.error), (Some(7), None, None));

    let task = node.sh("echo up; exec sleep 1000").await;
    node.wait_for_line(task, "up").await;
    // SAFETY: kill takes integers only; the pid is the task's.
    unsafe { libc::kill(node.pid(task, "init"), libc::SIGKILL) };
    let exit = node.executor.wait(task).await.unwrap();
    assert_eq!(
        (exit.code, exit.signal, exit.status()),
        (None, Some(libc::SIGKILL), 137)
    );
}

#[tokio::test]
async fn a_program_that_cannot_be_executed_is_dockers_sentence() {
    let node = Node::new();
    let plain = node.dir.join("plain");
    fs::write(&plain, "no program").unwrap();
    let plain = plain.to_str().unwrap();
    let cases = [
        (
            "no-such-program",
            127,
            "exec: \"no-such-program\": executable file not found in $PATH".to_owned(),
        ),
        (
            "/no/program",
            127,
            "exec: \"/no/program\": stat /no/program: no such file or directory".to_owned(),
        ),
        (plain, 126, format!("exec: \"{plain}\": permission denied")),
        ("/etc", 126, "exec: \"/etc\": is a directory".to_owned()),
    ];
    for (program, code, sentence) in cases {
        let mut container = sh("");
        container.command = vec![program.to_owned()];
        let task = assignment(container);
        node.executor
            .prepare(&task, &node.environment())
            .await
            .unwrap();
        let err = node.executor.start(task.id).await.unwrap_err();
        assert_eq!(err.to_string(), sentence);
        let exit = node.executor.wait(task.id).await.unwrap();
        assert_eq!((exit.code, exit.error), (Some(code), Some(sentence)));
        node.executor.remove(task.id).await.unwrap();
        assert!(!node.task_dir(task.id).exists());
    }
}

#[tokio::test]
async fn what_cannot_run_is_rejected_in_prepare() {
    let node = Node::new();
    let mut container = sh("true");
    container.image = "nginx:latest".to_owned();
    let err = node
        .executor
        .prepare(&assignment(container), &node.environment())
        .await
        .unwrap_err();
    assert_eq!(
        (err.to_string().as_str(), err.is_rejection()),
        ("No such image: nginx:latest", true)
    );

    let mut container = sh("true");
    container.stop_signal = Some("SIGFOO".to_owned());
    let err = node
        .executor
        .prepare(&assignment(container), &node.environment())
        .await
        .unwrap_err();
    assert!(err.is_rejection(), "{err}");

    let mut container = sh("true");
    container.command.clear();
    let err = node
        .executor
        .prepare(&assignment(container), &node.environment())
        .await
        .unwrap_err();
    assert_eq!(err.to_string(), "no command specified");
}

#[tokio::test]
async fn a_task_is_started_once() {
    let node = Node::new();
    let task = assignment(sh("exit 0"));
    let unprepared = node.executor.start(task.id).await;
    assert!(matches!(unprepared, Err(ExecError::NotPrepared(_))));
    node.executor
        .prepare(&task, &node.environment())
        .await
        .unwrap();
    node.executor
        .prepare(&task, &node.environment())
        .await
        .unwrap();
    node.executor.start(task.id).await.unwrap();
    assert!(matches!(
        node.executor.start(task.id).await,
        Err(ExecError::AlreadyStarted(_))
    ));
    let again = node.executor.prepare(&task, &node.environment()).await;
    assert!(matches!(again, Err(ExecError::AlreadyStarted(_))));
    node.executor.wait(task.id).await.unwrap();
}

#[tokio::test]
async fn the_stop_signal_reaches_a_program_that_handles_it() {
    let node = Node::new();
    let task = node
        .sh("trap 'echo bye; exit 3' QUIT; echo up; while :; do sleep 0.01; done")
        .await;
    node.wait_for_line(task, "up").await;
    let exit = node
        .executor
        .stop(task, "quit".parse().unwrap(), DEADLINE)
        .await
        .unwrap();
    assert_eq!(exit.code, Some(3));
    assert_eq!(node.output(task, LogStream::Stdout).await, "up\nbye");
    // Once more is no error: it has ended.
    let again = node.executor.stop(task, term(), DEADLINE).await.unwrap();
    assert_eq!(again, exit);
}

/// A pid 1 without a handler ignores the signal; after the grace the whole namespace dies with it,
/// also what made itself a daemon.
#[tokio::test]
async fn after_the_grace_all_of_the_task_is_killed() {
    let node = Node::new();
    let task = node
        .sh("setsid sleep 1000 & setsid sh -c 'sleep 1001 & wait' & echo up; wait")
        .await;
    node.wait_for_line(task, "up").await;
    let shim = node.pid(task, "shim");
    let mut all = Vec::new();
    eventually("all four processes run", || {
        all = descendants(shim);
        all.len() == 4
    })
    .await;
    let exit = node
        .executor
        .stop(task, term(), Duration::from_millis(100))
        .await
        .unwrap();
    assert_eq!(exit.signal, Some(libc::SIGKILL));
    let left: Vec<i32> = all.into_iter().filter(|pid| runs(*pid)).collect();
    assert!(left.is_empty(), "{left:?}");
    node.executor.remove(task).await.unwrap();
}

/// Pids of the processes below one, from `/proc`.
fn descendants(of: i32) -> Vec<i32> {
    let children = fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
    let children = children
        .split_ascii_whitespace()
        .map(|pid| pid.parse::<i32>().unwrap());
    children
        .flat_map(|pid| [vec![pid], descendants(pid)].concat())
        .collect()
}

#[tokio::test]
async fn remove_kills_a_running_task() {
    let node = Node::new();
    let task = node.sh("exec sleep 1000").await;
    let pids = [node.pid(task, "shim"), node.pid(task, "init")];
    node.executor.remove(task).await.unwrap();
    assert!(!pids.into_iter().any(runs) && !node.task_dir(task).exists());
    node.executor.remove(task).await.unwrap();
}

#[tokio::test]
async fn a_restarted_agent_adopts_a_running_task() {
    let mut node = Node::new();
    let task = node
        .sh("trap 'exit 4' TERM; echo up; while :; do sleep 0.01; done")
        .await;
    node.wait_for_line(task, "up").await;
    let pid = node.pid(task, "init") as u32;
    node.restart_agent();
    let before = node.executor.wait(task).await;
    assert!(matches!(before, Err(ExecError::NotRunning(_))));
    let adopted = node.executor.adopt().await.unwrap();
    assert_eq!(adopted.len(), 1);
    assert_eq!(
        (adopted[0].task, &adopted[0].state),
        (task, &AdoptedState::Running { pid })
    );
    let executor = node.executor.clone();
    let waiting = tokio::spawn(async move { executor.wait(task).await.unwrap() });
    let stopped = node.executor.stop(task, term(), DEADLINE).await.unwrap();
    assert_eq!(stopped.code, Some(4));
    assert_eq!(waiting.await.unwrap(), stopped);
}

#[tokio::test]
async fn an_exit_while_no_agent_was_there_is_found() {
    let mut node = Node::new();
    let gate = node.dir.join("gate");
    let task = node
        .sh(&format!(
            "while ! [ -e {} ]; do sleep 0.01; done; echo end; exit 5",
            gate.display()
        ))
        .await;
    node.restart_agent();
    fs::write(&gate, "").unwrap();
    let record = node.task_dir(task).join("exit.json");
    eventually("the shim records the exit", || record.exists()).await;
    let adopted = node.executor.adopt().await.unwrap();
    // The shim may be in its last moments; waiting says the same in both cases.
    assert!(!matches!(adopted[0].state, AdoptedState::Prepared));
    let exit = node.executor.wait(task).await.unwrap();
    assert_eq!(exit.code, Some(5));
    assert_eq!(node.output(task, LogStream::Stdout).await, "end");
}

#[tokio::test]
async fn a_prepared_task_is_adopted_as_such() {
    let mut node = Node::new();
    let task = assignment(sh("exit 6"));
    node.executor
        .prepare(&task, &node.environment())
        .await
        .unwrap();
    node.restart_agent();
    let adopted = node.executor.adopt().await.unwrap();
    assert_eq!(adopted[0].state, AdoptedState::Prepared);
    node.executor.start(task.id).await.unwrap();
    assert_eq!(node.executor.wait(task.id).await.unwrap().code, Some(6));
}

#[tokio::test]
async fn a_killed_shim_takes_its_task_along() {
    let node = Node::new();
    let task = node.sh("sleep 1000 & wait").await;
    let (shim, init) = (node.pid(task, "shim"), node.pid(task, "init"));
    // SAFETY: kill takes integers only; the pid is the shim's.
    unsafe { libc::kill(shim, libc::SIGKILL) };
    let exit = node.executor.wait(task).await.unwrap();
    assert_eq!((exit.code, exit.signal), (None, None));
    assert!(exit.error.unwrap().contains("shim died"));
    eventually("the task is gone", || !runs(init)).await;
}

/// The same as a user other than root: the kernel forgets the bond to the shim when the user
/// changes, so it has to be made again.
#[tokio::test]
async fn a_killed_shim_takes_another_users_task_along() {
    let mut node = Node::new();
    let mut container = sh("exec sleep 1000");
    container.user = Some("65534:65534".to_owned());
    let task = node.start(container).await;
    let (shim, init) = (node.pid(task, "shim"), node.pid(task, "init"));
    node.restart_agent(); // so that only the kernel can do it
    // SAFETY: kill takes integers only; the pid is the shim's.
    unsafe { libc::kill(shim, libc::SIGKILL) };
    eventually("the task is gone", || !runs(init)).await;
    let adopted = node.executor.adopt().await.unwrap();
    assert!(matches!(&adopted[0].state, AdoptedState::Exited(exit) if exit.error.is_some()));
}

/// An agent that dies between the start of a shim and its coming up: the task counts as failed, and
/// the shim that comes up late runs nothing.
#[tokio::test]
async fn a_late_shim_runs_nothing() {
    let mut node = Node::new();
    let task = assignment(sh("echo never"));
    node.executor
        .prepare(&task, &node.environment())
        .await
        .unwrap();
    fs::write(node.task_dir(task.id).join("starting"), "").unwrap();
    node.restart_agent();
    let adopted = node.executor.adopt().await.unwrap();
    assert!(matches!(&adopted[0].state, AdoptedState::Exited(exit) if exit.error.is_some()));
    let shim = Command::new(env!("CARGO_BIN_EXE_swarmnet-task-shim"))
        .arg(SHIM_COMMAND)
        .arg(node.task_dir(task.id))
        .output()
        .unwrap();
    assert_eq!(String::from_utf8(shim.stdout).unwrap(), "\"NotFirst\"\n");
    assert_eq!(node.output(task.id, LogStream::Stdout).await, "");
}

const AGENT_DIR: &str = "SN_EXEC_TEST_AGENT_DIR";
const AGENT_NETNS: &str = "SN_EXEC_TEST_AGENT_NETNS";

/// Not a test by itself: the agent process of the next one.
#[tokio::test]
#[ignore = "run by a_task_lives_on_when_the_agent_is_killed"]
async fn agent_that_is_killed() {
    let Some(dir) = std::env::var_os(AGENT_DIR) else {
        return;
    };
    let executor = ProcessExecutor::new(common::config(dir.as_ref()));
    let task = assignment(sh("echo up; while :; do sleep 0.01; done"));
    let mut environment = Node::new().environment();
    environment.netns = std::env::var_os(AGENT_NETNS).unwrap().into();
    executor.prepare(&task, &environment).await.unwrap();
    executor.start(task.id).await.unwrap();
    // SAFETY: kill takes integers only.
    unsafe { libc::kill(libc::getpid(), libc::SIGKILL) };
}

#[tokio::test]
async fn a_task_lives_on_when_the_agent_is_killed() {
    let node = Node::new();
    let agent = Command::new(std::env::current_exe().unwrap())
        .args(["agent_that_is_killed", "--exact", "--ignored"])
        .env(AGENT_DIR, &node.dir)
        .env(AGENT_NETNS, node.netns.path())
        .status()
        .unwrap();
    assert_eq!(agent.signal(), Some(libc::SIGKILL));
    let adopted = node.executor.adopt().await.unwrap();
    assert_eq!(adopted.len(), 1);
    let task: TaskId = adopted[0].task;
    let AdoptedState::Running { pid } = adopted[0].state else {
        panic!("{adopted:?}")
    };
    assert!(runs(pid as i32));
    node.wait_for_line(task, "up").await;
    let exit = node
        .executor
        .stop(task, StopSignal::KILL, DEADLINE)
        .await
        .unwrap();
    assert_eq!(exit.signal, Some(libc::SIGKILL));
}
