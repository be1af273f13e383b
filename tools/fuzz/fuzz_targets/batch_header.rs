#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| tidelog_fuzz::batch_header(data));
