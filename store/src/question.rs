//! Readers' question to the quorum, whether this manager still leads. Many readers share one.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Mutex;

/// Questions are numbered from 1, and asked one after the other.
#[derive(Debug, Default)]
pub(crate) struct Question {
    /// Number of the newest one.
    begun: AtomicU64,
    /// Number of the newest one that was answered with yes.
    affirmed: Mutex<u64>,
}

impl Question {
    /// Whether the answer to a question that begins after this call is yes: to `question`, or to
    /// another reader's. One under way says nothing of what was written since it began.
    ///
    /// Cancel-safe: another reader asks then.
    pub(crate) async fn ask(&self, question: impl Future<Output = bool>) -> bool {
        let before = self.begun.load(Ordering::SeqCst);
        let mut affirmed = self.affirmed.lock().await;
        if *affirmed > before {
            return true;
        }
        let number = self.begun.fetch_add(1, Ordering::SeqCst) + 1;
        let yes = question.await;
        if yes {
            *affirmed = number;
        }
        yes
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::Arc, time::Duration};

    use tokio::{
        sync::{mpsc, oneshot},
        task::JoinHandle,
        time::timeout,
    };

    use super::*;

    /// In virtual time, which passes when nothing else is left to do.
    const PATIENCE: Duration = Duration::from_secs(1);

    type Questions = mpsc::UnboundedReceiver<oneshot::Sender<bool>>;

    async fn asked(questions: &mut Questions) -> oneshot::Sender<bool> {
        let question = timeout(PATIENCE, questions.recv()).await;
        question
            .expect("a question is asked")
            .expect("there are readers")
    }

    /// Readers whose questions the test answers.
    struct Readers {
        question: Arc<Question>,
        asked: mpsc::UnboundedSender<oneshot::Sender<bool>>,
    }

    impl Readers {
        fn new() -> (Self, Questions) {
            let (asked, questions) = mpsc::unbounded_channel();
            let question = Arc::default();
            (Self { question, asked }, questions)
        }

        /// One that has come as far as it can.
        async fn reader(&self) -> JoinHandle<bool> {
            let (question, asked) = (Arc::clone(&self.question), self.asked.clone());
            let reader = tokio::spawn(async move {
                let ask = async {
                    let (answer, answered) = oneshot::channel();
                    asked.send(answer).expect("the test listens");
                    answered.await.expect("the test answers")
                };
                question.ask(ask).await
            });
            tokio::task::yield_now().await;
            reader
        }
    }

    #[tokio::test(start_paused = true)]
    async fn readers_share_the_question_that_begins_after_they_came() {
        let (readers, mut questions) = Readers::new();
        let first = readers.reader().await;
        let under_way = asked(&mut questions).await;
        let others = [readers.reader().await, readers.reader().await];
        under_way.send(true).unwrap();
        assert!(first.await.unwrap());
        let shared = asked(&mut questions).await;
        assert!(!others.iter().any(JoinHandle::is_finished));
        shared.send(true).unwrap();
        for other in others {
            assert!(other.await.unwrap());
        }
        assert!(questions.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn no_answer_is_shared_but_yes() {
        let (readers, mut questions) = Readers::new();
        let first = readers.reader().await;
        let under_way = asked(&mut questions).await;
        let others = [readers.reader().await, readers.reader().await];
        under_way.send(false).unwrap();
        assert!(!first.await.unwrap());
        let second = asked(&mut questions).await;
        second.send(false).unwrap();
        let third = asked(&mut questions).await;
        third.send(true).unwrap();
        let [one, other] = others;
        assert_eq!((one.await.unwrap(), other.await.unwrap()), (false, true));
    }

    #[tokio::test(start_paused = true)]
    async fn reader_that_goes_leaves_the_question_to_the_next() {
        let (readers, mut questions) = Readers::new();
        let first = readers.reader().await;
        let unanswered = asked(&mut questions).await;
        let second = readers.reader().await;
        first.abort();
        let answer = asked(&mut questions).await;
        assert!(unanswered.is_closed());
        answer.send(true).unwrap();
        assert!(second.await.unwrap());
    }
}
