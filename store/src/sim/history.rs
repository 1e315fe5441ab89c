//! What clients asked and heard, for the checker of another crate: is there an order of all
//! operations that agrees with each answer, and with which came before which?

use std::collections::BTreeMap;

use todc_utils::{
    linearizability::{
        WGLChecker,
        history::{
            Action::{self, Call, Response},
            History as Actions,
        },
    },
    specifications::register::{RegisterOperation, RegisterSpecification},
};

/// The value of a register; none before the first write.
pub(super) type Value = Option<u64>;

type Checker = WGLChecker<RegisterSpecification<Value>>;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Asked {
    Write(u64),
    Read,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heard {
    Wrote,
    Read(Value),
    /// It is certain that nothing was done.
    Refused,
}

/// Its times are places in the order of all begins and ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Operation {
    asked: Asked,
    begun: u64,
    ended: Option<(u64, Heard)>,
}

/// Names an operation that was begun.
#[derive(Debug, Clone, Copy)]
pub(super) struct Begun {
    register: u64,
    place: usize,
}

/// The operations on all registers.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct History {
    registers: BTreeMap<u64, Vec<Operation>>,
    now: u64,
    /// Their number.
    operations: u64,
}

impl History {
    pub(super) fn begin_write(&mut self, register: u64, value: u64) -> Begun {
        self.begin(register, Asked::Write(value))
    }

    pub(super) fn begin_read(&mut self, register: u64) -> Begun {
        self.begin(register, Asked::Read)
    }

    fn begin(&mut self, register: u64, asked: Asked) -> Begun {
        self.now += 1;
        self.operations += 1;
        let operations = self.registers.entry(register).or_default();
        operations.push(Operation {
            asked,
            begun: self.now,
            ended: None,
        });
        Begun {
            register,
            place: operations.len() - 1,
        }
    }

    pub(super) fn end(&mut self, begun: Begun, heard: Heard) {
        self.now += 1;
        let operations = self.registers.get_mut(&begun.register);
        let operations = operations.expect("it was begun");
        operations[begun.place].ended = Some((self.now, heard));
    }

    /// How many operations were begun.
    pub(super) fn len(&self) -> u64 {
        self.operations
    }

    /// # Panics
    /// When no order explains what was heard of a register.
    pub(super) fn check(&self) {
        for (register, operations) in &self.registers {
            let actions = actions(operations);
            assert!(
                actions.is_empty() || Checker::is_linearizable(Actions::from_actions(actions)),
                "register {register} is not linearizable: {operations:?}"
            );
        }
    }
}

/// What the checker is to explain. Not what was refused, nor reads without an answer. A write
/// without an answer ends last: it may take place at any time after it was begun, seen by all or by
/// none.
fn actions(operations: &[Operation]) -> Vec<(usize, Action<RegisterOperation<Value>>)> {
    let mut actions = BTreeMap::new();
    for (process, operation) in operations.iter().enumerate() {
        let (call, response) = match (operation.asked, operation.ended) {
            (_, Some((_, Heard::Refused))) | (Asked::Read, None) => continue,
            (Asked::Write(value), _) => {
                let write = RegisterOperation::Write(Some(value));
                (write, write)
            }
            (Asked::Read, Some((_, Heard::Read(value)))) => (
                RegisterOperation::Read(None),
                RegisterOperation::Read(Some(value)),
            ),
            (Asked::Read, Some((_, Heard::Wrote))) => unreachable!("a read hears a value"),
        };
        let ended = operation.ended.map_or(u64::MAX, |(at, _)| at);
        actions.insert((operation.begun, process), (process, Call(call)));
        actions.insert((ended, process), (process, Response(response)));
    }
    actions.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(history: &mut History, value: Value) {
        let begun = history.begin_read(0);
        history.end(begun, Heard::Read(value));
    }

    fn assert_no_order(history: &History) {
        let checked = std::panic::catch_unwind(|| history.check());
        assert!(checked.is_err(), "{history:?}");
    }

    #[test]
    fn no_order_explains_a_value_read_after_it_was_replaced() {
        let mut history = History::default();
        for value in [1, 2] {
            let write = history.begin_write(0, value);
            history.end(write, Heard::Wrote);
        }
        read(&mut history, Some(2));
        history.check();
        read(&mut history, Some(1));
        assert_no_order(&history);
    }

    #[test]
    fn open_write_takes_place_late_or_never_and_a_refused_one_never() {
        let mut history = History::default();
        let open = history.begin_write(0, 1);
        read(&mut history, None);
        history.check();
        read(&mut history, Some(1));
        history.check();
        history.end(open, Heard::Refused);
        assert_no_order(&history);
    }
}
