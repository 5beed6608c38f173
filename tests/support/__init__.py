"""What the tests share: not tests themselves."""
