"""Whether a thing can be called by its text, and known by its identity."""

from calibrant.errors import SpecError
from calibrant.spec import Spec, about, is_foreign, qualified
from calibrant.spec.registry import Registry


def untyped(thing: Spec, registry: Registry) -> str:
    """Return why the text of `thing` can't be typed, in a sentence; nothing if it gives the
    thing back.
    """
    name, text, cls = thing.spec_name(), repr(thing), type(thing)
    if name not in registry.names():
        entry = f"give it the entry point {cls.__name__.lower()} = {qualified(cls)!r} in the group {registry.package!r}"
        return f"{text} can't be typed: no {registry.noun} is called {name!r}; {entry if is_foreign(cls) else 'call it as its file'}"
    try:
        again = registry.build(text)
    except SpecError as error:
        return f"{text} can't be typed: {error}"
    if again == thing and repr(again) == text:
        return ""
    which = (
        ""
        if type(again) is cls
        else f", which is {qualified(type(again))} and not {qualified(cls)}"
    )
    return f"{text} is read back as {again!r}{which}; a {registry.noun}'s text must give the {registry.noun} back"


def mistaken(thing: Spec, registry: Registry) -> str:
    """Return which other thing of the registry has the identity of `thing`, in a sentence;
    nothing if none has.
    """
    classes = map(registry.get, registry.names())
    same = next(
        (cls for cls in classes if cls is not type(thing) and about(cls) == about(type(thing))),
        None,
    )
    return (
        f"{thing!r} has the identity of {qualified(same)}; what differs must not share one, so leave spec_name as it is"
        if same
        else ""
    )
