#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::service_inputs::target(data));
