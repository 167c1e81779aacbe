//! The mediator on the software GPU, with a driver that does what i915 does.

mod one;
