"""What a model knows of the world: capitals, continents, chemical symbols. Written for qsweep."""

import random
from collections.abc import Iterator

from qsweep.tasks.items import Item

_CHOICES = 4
_COUNTRIES = {
    "Europe": (
        "France Paris,Germany Berlin,Italy Rome,Spain Madrid,Portugal Lisbon,Austria Vienna,"
        "Belgium Brussels,Greece Athens,Ireland Dublin,Norway Oslo,Sweden Stockholm,"
        "Finland Helsinki,Denmark Copenhagen,Poland Warsaw,Hungary Budapest,Romania Bucharest,"
        "Bulgaria Sofia,Serbia Belgrade,Croatia Zagreb,Ukraine Kyiv,Switzerland Bern,"
        "Iceland Reykjavik,Latvia Riga,Lithuania Vilnius,Estonia Tallinn,Slovenia Ljubljana,"
        "Slovakia Bratislava,Albania Tirana,Malta Valletta,Belarus Minsk"
    ),
    "Asia": (
        "Japan Tokyo,China Beijing,India Delhi,Thailand Bangkok,Vietnam Hanoi,Iran Tehran,"
        "Iraq Baghdad,Syria Damascus,Lebanon Beirut,Jordan Amman,Israel Jerusalem,Nepal Kathmandu,"
        "Pakistan Islamabad,Afghanistan Kabul,Bangladesh Dhaka,Mongolia Ulaanbaatar,Qatar Doha,"
        "Indonesia Jakarta,Philippines Manila,Malaysia Kuala_Lumpur,Oman Muscat,Laos Vientiane,"
        "Uzbekistan Tashkent,Bhutan Thimphu"
    ),
    "Africa": (
        "Egypt Cairo,Kenya Nairobi,Ethiopia Addis_Ababa,Nigeria Abuja,Ghana Accra,Senegal Dakar,"
        "Morocco Rabat,Algeria Algiers,Tunisia Tunis,Libya Tripoli,Sudan Khartoum,Somalia Mogadishu,"
        "Uganda Kampala,Rwanda Kigali,Zambia Lusaka,Zimbabwe Harare,Angola Luanda,Mozambique Maputo,"
        "Namibia Windhoek,Madagascar Antananarivo,Mali Bamako,Botswana Gaborone"
    ),
    "South America": (
        "Argentina Buenos_Aires,Brazil Brasilia,Chile Santiago,Peru Lima,Colombia Bogota,"
        "Venezuela Caracas,Ecuador Quito,Uruguay Montevideo,Paraguay Asuncion,Bolivia La_Paz"
    ),
    "North America": (
        "Canada Ottawa,Mexico Mexico_City,Cuba Havana,Jamaica Kingston,Panama Panama_City,"
        "Nicaragua Managua,Honduras Tegucigalpa,Haiti Port-au-Prince"
    ),
}
_SYMBOLS = (
    "hydrogen H,helium He,lithium Li,carbon C,nitrogen N,oxygen O,fluorine F,neon Ne,sodium Na,"
    "magnesium Mg,aluminium Al,silicon Si,phosphorus P,sulfur S,chlorine Cl,argon Ar,potassium K,"
    "calcium Ca,titanium Ti,chromium Cr,manganese Mn,iron Fe,cobalt Co,nickel Ni,copper Cu,zinc Zn,"
    "arsenic As,bromine Br,krypton Kr,silver Ag,tin Sn,iodine I,xenon Xe,tungsten W,platinum Pt,"
    "gold Au,mercury Hg,lead Pb,radon Rn,uranium U"
)


def world_facts(count: int, seed: int) -> list[Item]:
    """At most so many questions on the tables above, in an order drawn by ``seed``."""
    rng = random.Random(f"facts {seed}")  # noqa: S311 - not for cryptography
    items = [*_capitals(rng), *_continents(rng), *_symbols(rng)]
    rng.shuffle(items)
    return items[:count]


def _capitals(rng: random.Random) -> Iterator[Item]:
    for continent, table in _COUNTRIES.items():
        pairs = _pairs(table)
        for country, capital in pairs.items():
            # Others of the continent: the region alone does not give the answer away.
            others = [c for c in pairs.values() if c != capital]
            prompt = f"The capital of {country} is"
            yield _item(prompt, capital, rng.sample(others, _CHOICES - 1), rng)
        assert continent


def _continents(rng: random.Random) -> Iterator[Item]:
    for continent, table in _COUNTRIES.items():
        others = [c for c in _COUNTRIES if c != continent]
        for country in list(_pairs(table))[:12]:
            prompt = f"The country {country} lies on the continent of"
            yield _item(prompt, continent, rng.sample(others, _CHOICES - 1), rng)


def _symbols(rng: random.Random) -> Iterator[Item]:
    pairs = _pairs(_SYMBOLS)
    for element, symbol in pairs.items():
        others = [s for s in pairs.values() if s != symbol]
        # Those with the same first letter first, as the letter is easily guessed.
        others.sort(key=lambda s: (s[0] != symbol[0], rng.random()))
        prompt = f"The chemical symbol of {element} is"
        yield _item(prompt, symbol, others[: _CHOICES - 1], rng)


def _item(prompt: str, answer: str, others: list[str], rng: random.Random) -> Item:
    choices = [answer, *others]
    rng.shuffle(choices)
    return Item(prompt, answer, tuple(choices))


def _pairs(table: str) -> dict[str, str]:
    entries = (entry.rsplit(" ", 1) for entry in table.split(","))
    return {name: value.replace("_", " ") for name, value in entries}
