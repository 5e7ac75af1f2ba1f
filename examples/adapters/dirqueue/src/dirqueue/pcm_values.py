"""What the expressions of descriptions are made of.

Values are as JSON has them. A field that is missing ends the expression by a Fault.
"""

import base64
import json
import math
import re
from functools import cmp_to_key

LIST, DICT = list, dict  # below, list is a function of expressions


class Fault(Exception):
    """Why an expression gives no value."""


class Optional:
    """A value, or none."""

    def __init__(self, value=None, has=False):
        self.value, self.has = value, has


class KeptNull:
    """A null that is written out; others are left out of lists and objects."""


KEPT_NULL = KeptNull()


def nothing():
    return KEPT_NULL


def plain(x):
    """Turns optionals into what they hold."""
    if isinstance(x, Optional):
        return plain(x.value) if x.has else None
    if isinstance(x, KeptNull):
        return None
    if isinstance(x, LIST):
        return [plain(y) for y in x]
    if isinstance(x, DICT):
        return {k: plain(y) for k, y in x.items()}
    return x


def evaluate(x, v):
    """What an expression or template gives; None if there is none."""
    if x is None:
        return None
    try:
        return plain(x(v))
    except Fault:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, ArithmeticError, re.error, RecursionError) as e:
        raise Fault(f"an expression finds no value: {e}") from e


def text(x, v):
    return as_text(evaluate(x, v))


def as_text(x):
    x = plain(x)
    if x is None:
        return ""
    if isinstance(x, str):
        return x
    if isinstance(x, bool):
        return "true" if x else "false"
    if isinstance(x, float):
        return str(int(x)) if x.is_integer() and abs(x) < 1e21 else repr(x)
    if isinstance(x, (LIST, DICT)):
        return encode(x)
    return str(x)


def encode(x):
    return json.dumps(plain(x), ensure_ascii=False, sort_keys=True, separators=(",", ":"))


def whole(x):
    return isinstance(x, int) and not isinstance(x, bool)


def number(x):
    return isinstance(x, (int, float)) and not isinstance(x, bool)


def find(x, key):
    if isinstance(key, Optional):
        key = key.value
    if isinstance(x, DICT):
        key = as_text(key)
        return (x[key], True) if key in x else (None, False)
    if isinstance(x, LIST) and whole(key) and 0 <= key < len(x):
        return x[key], True
    return None, False


def get(x, *names):
    """Takes fields, of which none may be missing."""
    for name in names:
        x = at(x, name)
    return x


def at(x, key):
    if isinstance(x, Optional):
        return opt(x, key)
    value, ok = find(x, key)
    if not ok:
        raise Fault(f"there is no {as_text(key)}")
    return value


def opt(x, key):
    if isinstance(x, Optional):
        if not x.has:
            return x
        x = x.value
    return Optional(*find(x, key))


def has(x, name):
    return find(x.value if isinstance(x, Optional) else x, name)[1]


def path(x, *steps):
    """Follows a JSONPath to one value; None if there is none."""
    for s in steps:
        if whole(s) and s < 0 and isinstance(x, LIST):
            s += len(x)
        x, ok = find(x, s)
        if not ok:
            return None
    return x


def paths(x, *steps):
    """Follows one with wildcards, which are None."""
    found = [x]
    for s in steps:
        after = []
        for f in found:
            if s is not None:
                value, ok = find(f, s)
                if ok:
                    after.append(value)
            elif isinstance(f, LIST):
                after.extend(f)
            elif isinstance(f, DICT):
                after.extend(f[k] for k in sorted(f))
        found = after
    return found


def concat(*parts):
    return "".join(as_text(p) for p in parts)


def list(*items):
    """A list of what is not nothing."""
    return [plain(x) for x in items if plain(x) is not None or x is KEPT_NULL]


def object(*pairs):
    """A map of what is not nothing."""
    return {k: plain(x) for k, x in zip(pairs[::2], pairs[1::2], strict=True) if plain(x) is not None or x is KEPT_NULL}


def present(items):
    return [x.value for x in items if x.has]


def truth(x):
    if not isinstance(x, bool):
        raise Fault(f"{as_text(x)} is not true or false")
    return x


def both(a, b):
    return truth(a()) and truth(b())


def either(a, b):
    return truth(a()) or truth(b())


def negate(x):
    return not truth(x)


def fold(over, accu, cond, step, result):
    if not isinstance(over, (LIST, DICT)):
        raise Fault(f"{as_text(over)} is neither list nor map")
    for x in sorted(over) if isinstance(over, DICT) else over:
        if not truth(cond(accu, x)):
            break
        accu = step(accu, x)
    return result(accu)


def eq(a, b):
    if number(a) and number(b):
        return a == b
    if type(a) is not type(b):
        return False
    if isinstance(a, LIST):
        return len(a) == len(b) and all(eq(x, y) for x, y in zip(a, b, strict=True))
    if isinstance(a, DICT):
        return a.keys() == b.keys() and all(eq(a[k], b[k]) for k in a)
    return a == b


def ne(a, b):
    return not eq(a, b)


def order(a, b):
    if not (number(a) and number(b)) and not (isinstance(a, str) and isinstance(b, str)):
        raise Fault(f"{as_text(a)} and {as_text(b)} can't be compared")
    if isinstance(a, str):
        a, b = a.encode(), b.encode()
    return (a > b) - (a < b)


def lt(a, b):
    return order(a, b) < 0


def le(a, b):
    return order(a, b) <= 0


def gt(a, b):
    return order(a, b) > 0


def ge(a, b):
    return order(a, b) >= 0


def bounded(x):
    if whole(x) and not -(1 << 63) <= x < 1 << 63:
        raise Fault("the number is too large")
    return x


def add(a, b):
    if number(a) and number(b) or isinstance(a, str) and isinstance(b, str) or isinstance(a, LIST) and isinstance(b, LIST):
        return bounded(a + b)
    raise Fault(f"{as_text(a)} + {as_text(b)} can't be calculated")


def numbers(a, b):
    if not number(a) or not number(b):
        raise Fault(f"{as_text(a)} and {as_text(b)} can't be calculated with")


def sub(a, b):
    numbers(a, b)
    return bounded(a - b)


def mul(a, b):
    numbers(a, b)
    return bounded(a * b)


def div(a, b):
    numbers(a, b)
    if whole(a) and whole(b):
        if b == 0:
            raise Fault("division by zero")
        return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)
    return a / b


def mod(a, b):
    if not whole(a) or not whole(b) or b == 0:
        raise Fault(f"{as_text(a)} % {as_text(b)} can't be calculated")
    return a - b * div(a, b)


def minus(x):
    return sub(0, x)


def within(x, where):
    if isinstance(where, DICT):
        return as_text(x) in where
    return any(eq(x, y) for y in items(where))


def string(x):
    if not isinstance(x, str):
        raise Fault(f"{as_text(x)} is not a text")
    return x


def items(x):
    if not isinstance(x, LIST):
        raise Fault(f"{as_text(x)} is not a list")
    return x


def fSize(x):
    if not isinstance(x, (str, LIST, DICT)):
        raise Fault(f"{as_text(x)} has no size")
    return len(x)


def fContains(s, t):
    return string(t) in string(s)


def fStartsWith(s, t):
    return string(s).startswith(string(t))


def fEndsWith(s, t):
    return string(s).endswith(string(t))


def fMatches(s, pattern):
    return re.search(string(pattern), string(s)) is not None


def fInt(x):
    if whole(x):
        return x
    if isinstance(x, float) and math.isfinite(x):
        return bounded(int(x))
    if isinstance(x, str) and re.fullmatch(r"[+-]?[0-9]{1,19}", x):
        return bounded(int(x))
    raise Fault(f"{as_text(x)} is not a whole number")


def fUint(x):
    return fInt(x)


def fDouble(x):
    return float(x) if number(x) else float(string(x))


def fString(x):
    return as_text(x)


def fDyn(x):
    return x


def fBool(x):
    if as_text(x) not in ("true", "false"):
        raise Fault(f"{as_text(x)} is not true or false")
    return as_text(x) == "true"


def fOptionalOf(x):
    return Optional(x, True)


def fOptionalNone():
    return Optional()


def fOptionalOfNonZeroValue(x):
    return Optional() if as_text(x) in ("", "0", "false", "[]", "{}") else Optional(x, True)


def fHasValue(x):
    return x.has


def fValue(x):
    if not x.has:
        raise Fault("there is no value")
    return x.value


def fOrValue(x, otherwise):
    return x.value if x.has else otherwise


def fOr(x, otherwise):
    return x if x.has else otherwise


def fSplit(s, sep):
    return string(s).split(string(sep)) if sep else [*string(s)]


def fJoin(parts, sep):
    return string(sep).join(as_text(p) for p in items(parts))


def fReplace(s, old, new):
    return string(s).replace(string(old), string(new))


def fLower(s):
    return string(s).lower()


def fUpper(s):
    return string(s).upper()


def fTrim(s):
    return string(s).strip()


def fBase64(s):
    return base64.b64encode(string(s).encode()).decode()


def fUnbase64(s):
    return base64.b64decode(string(s), validate=True).decode()


def fJson(x):
    return encode(x)


def fShell(x):
    return " ".join("'" + as_text(w).replace("'", "'\\''") + "'" for w in (x if isinstance(x, LIST) else [x]))


def fCeildiv(a, b):
    if not whole(a) or not whole(b) or b <= 0:
        raise Fault("ceildiv needs whole numbers, the second over 0")
    return -(-a // b)


def fLeast(values):
    if not items(values):
        raise Fault("least needs a list that is not empty")
    return sorted(values, key=cmp_to_key(order))[0]
