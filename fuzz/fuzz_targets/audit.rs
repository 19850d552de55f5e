#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| detector::fuzz::audit(bytes));
