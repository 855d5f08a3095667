//! The simulated service as a sans-IO state machine.
