#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| pingora_mcp_fuzz::configuration(input));
