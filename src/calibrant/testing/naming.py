"""Does the text of a thing give it back, and is its identity its own?"""

from calibrant.errors import SpecError
from calibrant.spec import Spec, about, is_foreign, qualified
from calibrant.spec.registry import Registry


def untyped(thing: Spec, registry: Registry) -> str:
    """Return in a sentence why the text of a thing doesn't give it back; empty if it does."""
    name = thing.spec_name()
    text = repr(thing)
    kind = type(thing)
    if name not in registry.names():
        remedy = "call it as its file"
        if is_foreign(kind):
            entry = f"{kind.__name__.lower()} = {qualified(kind)!r}"
            remedy = f"give it the entry point {entry} in the group {registry.package!r}"
        return f"{text} can't be typed: no {registry.noun} is called {name!r}; {remedy}"
    try:
        again = registry.build(text)
    except SpecError as error:
        return f"{text} can't be typed: {error}"
    if again == thing and repr(again) == text:
        return ""
    other_class = ""
    if type(again) is not kind:
        other_class = f", which is {qualified(type(again))} and not {qualified(kind)}"
    noun = registry.noun
    return (
        f"{text} is read back as {again!r}{other_class}; a {noun}'s text must give the {noun} back"
    )


def mistaken(thing: Spec, registry: Registry) -> str:
    """Return in a sentence which other thing of the registry has this one's identity; empty if
    none has.
    """
    kind = type(thing)
    for name in registry.names():
        other = registry.get(name)
        if other is not kind and about(other) == about(kind):
            shared = f"{thing!r} has the identity of {qualified(other)}"
            return f"{shared}; what differs must not share one, so leave spec_name as it is"
    return ""
