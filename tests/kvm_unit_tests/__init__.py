"""kvm-unit-tests under pykvm, QEMU with KVM and QEMU without: `make kvm-unit-tests KUT=PATH`.

The tests are not part of this repository.  PATH is a checkout of them, built:

    git clone https://gitlab.com/kvm-unit-tests/kvm-unit-tests.git
    cd kvm-unit-tests && ./configure && make
"""
