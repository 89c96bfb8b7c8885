import threading
from contextlib import ExitStack

import pytest

from sdcore.critics.servers import Servers


class NoAnswerError(Exception):
    pass


def taken(servers: Servers, count: int, stack: ExitStack) -> list[str]:
    return [stack.enter_context(servers.one(passing=NoAnswerError)) for _ in range(count)]


def test_requests_are_spread_and_bounded_at_each_server():
    servers = Servers(["a", "b", "c"], most=2)
    assert servers.total == 6
    with ExitStack() as stack:
        assert taken(servers, 6, stack) == ["a", "b", "c", "a", "b", "c"]
        more = threading.Thread(target=lambda: taken(servers, 1, stack))
        more.start()
        more.join(0.2)
        assert more.is_alive()  # every server has two
        stack.close()
        more.join(60)
        assert not more.is_alive()


def failed(servers: Servers) -> str:
    with pytest.raises(NoAnswerError), servers.one(passing=NoAnswerError) as address:
        raise NoAnswerError
    return address


def test_a_server_that_failed_is_left_out_unless_all_have():
    servers = Servers(["a", "b"], most=2, rest=3600)
    assert failed(servers) == "a"
    with ExitStack() as stack:
        assert taken(servers, 2, stack) == ["b", "b"]
    assert failed(servers) == "b"
    with ExitStack() as stack:
        assert taken(servers, 4, stack) == ["a", "b", "a", "b"]


def test_other_errors_say_nothing_of_the_server_and_a_rested_one_is_back():
    servers = Servers(["a", "b"], most=2, rest=0)
    for error in (ValueError, NoAnswerError):
        with pytest.raises(error), servers.one(passing=NoAnswerError):
            raise error
        with servers.one(passing=NoAnswerError) as next_:
            assert next_ == "a"
