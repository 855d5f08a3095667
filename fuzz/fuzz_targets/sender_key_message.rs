#![no_main]
libfuzzer_sys::fuzz_target!(|data: &[u8]| fuzz_targets::sender_key_message::target(data));
