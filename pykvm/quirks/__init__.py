"""What this host's KVM gets wrong in the guest's sight, and how each is made good."""
