//! Lists that `set` changes as a whole, or by what is put in and taken out.

use crate::exit::{Code, Failure};

/// How a list is changed, from the values of three options: the whole of it, what comes in, what goes out.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Change<'a, T> {
    /// The option for the whole list, with dashes.
    pub(crate) option: &'static str,
    pub(crate) whole: &'a [T],
    pub(crate) add: &'a [T],
    pub(crate) remove: &'a [T],
}

impl<T: PartialEq> Change<'_, T> {
    /// Whether any of the options was given.
    pub(crate) fn is_given(&self) -> bool {
        !(self.whole.is_empty() && self.add.is_empty() && self.remove.is_empty())
    }

    /// The list after the change. `make` gives the element for a value, and `is` says whether an element is that of a value; elements that stay are
    /// those of `current`.
    pub(crate) fn apply<E: Clone>(
        &self,
        current: &[E],
        make: impl Fn(&T) -> E,
        is: impl Fn(&E, &T) -> bool,
        show: impl Fn(&T) -> String,
    ) -> Result<Vec<E>, Failure> {
        let known = |value: &T| current.iter().find(|element| is(element, value));
        let element = |value: &T| known(value).cloned().unwrap_or_else(|| make(value));
        let mut list: Vec<E> = match self.whole {
            [] => current.to_vec(),
            whole => whole.iter().map(&element).collect(),
        };
        for value in self.remove {
            let before = list.len();
            list.retain(|element| !is(element, value));
            if list.len() == before {
                let message = format!("{}-remove {}: is not there", self.option, show(value));
                return Err(Failure::new(Code::Usage, message));
            }
        }
        for value in self.add {
            if !list.iter().any(|element| is(element, value)) {
                list.push(element(value));
            }
        }
        Ok(list)
    }
}

impl Change<'_, String> {
    /// The list of names after the change.
    pub(crate) fn names(&self, current: &[String]) -> Result<Vec<String>, Failure> {
        self.apply(current, String::clone, |a, b| a == b, String::clone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(whole: &[&str], add: &[&str], remove: &[&str]) -> Result<Vec<String>, Failure> {
        let owned =
            |names: &[&str]| -> Vec<String> { names.iter().map(|n| (*n).to_owned()).collect() };
        let change = Change {
            option: "--rings",
            whole: &owned(whole),
            add: &owned(add),
            remove: &owned(remove),
        };
        change.names(&owned(&["a", "b", "c"]))
    }

    #[test]
    fn what_is_not_named_stays() {
        assert_eq!(names(&[], &["d", "a"], &["b"]).unwrap(), ["a", "c", "d"]);
        assert_eq!(names(&["x", "a"], &[], &[]).unwrap(), ["x", "a"]);
        assert_eq!(names(&[], &["b"], &["b"]).unwrap(), ["a", "c", "b"]);
    }

    #[test]
    fn what_is_not_there_cannot_be_taken_out() {
        let failure = names(&[], &[], &["z"]).unwrap_err();
        assert_eq!(failure.message, "--rings-remove z: is not there");
        assert_eq!(failure.code, Code::Usage);
    }
}
