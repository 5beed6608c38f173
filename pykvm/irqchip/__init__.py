"""Interrupt controllers and clocks of a machine, in software, in KVM, or half in each."""
