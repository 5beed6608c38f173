"""Instructions that KVM refuses, executed and handed back."""
