//! A panic in product code, caught and put into words.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Once;

thread_local! {
    static LAST: RefCell<Option<String>> = const { RefCell::new(None) };
    static CATCHING: RefCell<bool> = const { RefCell::new(false) };
}
static HOOK: Once = Once::new();

/// Runs `f`. A panic within it is not printed, and becomes an error with its message and place.
pub(crate) fn catch<T>(f: impl FnOnce() -> T) -> Result<T, String> {
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if CATCHING.with_borrow(|catching| *catching) {
                let message = info.payload_as_str().unwrap_or("a panic without a message");
                let place =
                    info.location().map_or_else(String::new, |l| format!(" at {}:{}", l.file(), l.line()));
                LAST.with_borrow_mut(|last| *last = Some(format!("{message}{place}")));
            } else {
                before(info);
            }
        }));
    });
    let outer = CATCHING.replace(true);
    let result = catch_unwind(AssertUnwindSafe(f));
    CATCHING.set(outer);
    result.map_err(|_| LAST.take().unwrap_or_else(|| "a panic".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_words_and_others_go_on() {
        assert_eq!(catch(|| 7), Ok(7));
        let words = catch(|| panic!("of {}", 3)).unwrap_err();
        assert!(words.starts_with("of 3 at ") && words.contains("panics.rs"), "{words}");
        assert_eq!(catch(|| 8), Ok(8));
    }
}
