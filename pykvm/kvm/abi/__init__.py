"""<linux/kvm.h> for x86: every struct as a `construct` Struct, every ioctl number.

This package is the one definition of KVM's layouts.  It speaks construct, so each struct parses
and builds by itself:

>>> from pykvm.kvm import abi
>>> abi.kvm_msi.parse(bytes(32)).devid
0

What runs in pykvm uses `pykvm.kvm.uapi`, which `python -m pykvm.kvm.derive` writes from this
package: the same layouts as data, without the price of importing construct.  Left out are other
architectures, Xen, SEV, TDX, and what the kernel itself has removed.
"""

from pykvm.kvm.abi.cpu import *  # noqa: F403
from pykvm.kvm.abi.ioctls import *  # noqa: F403
from pykvm.kvm.abi.run import *  # noqa: F403
from pykvm.kvm.abi.vm import *  # noqa: F403
