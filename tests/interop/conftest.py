"""What the tests' helpers assert is explained as in the tests themselves."""

import pytest

pytest.register_assert_rewrite("interop.traffic", "interop.ebpfvpn_node")
