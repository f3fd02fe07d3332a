//! Which fields of a spec were given a value.

/// The names of the fields that were given a value, for an update mask.
#[derive(Debug, Default)]
pub(crate) struct Given(pub(crate) Vec<&'static str>);

impl Given {
    /// Puts a value that was given into the field of this name.
    pub(crate) fn put<T>(&mut self, name: &'static str, field: &mut T, value: Option<T>) {
        if let Some(value) = value {
            *field = value;
            self.0.push(name);
        }
    }
}
