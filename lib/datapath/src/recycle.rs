//! Vectors of borrowed things, used over and over.

/// The memory of a vector whose elements are not needed any more, for elements that live longer.
pub fn recycle<From, To>(mut old: Vec<From>) -> Vec<To> {
    old.clear();
    // There is no element to convert; collecting in place keeps the memory when both have the same layout.
    old.into_iter().filter_map(|_| None).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_kept_for_elements_that_differ_in_lifetime_only() {
        let mut old: Vec<&[u8]> = Vec::with_capacity(100);
        let short = [1, 2];
        old.push(&short);
        let (address, capacity) = (old.as_ptr().addr(), old.capacity());
        let new: Vec<&'static [u8]> = recycle(old);
        assert!(new.is_empty());
        assert_eq!((new.as_ptr().addr(), new.capacity()), (address, capacity));
    }
}
