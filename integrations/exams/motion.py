"""Kinematics: uniform motion and uniform acceleration."""

from __future__ import annotations

from fractions import Fraction
from itertools import product
from typing import Final

from fastreward.integrations.exams.task import Language, Number, Parameters, Solution, Task, Texts, measured


def _uniform() -> list[Parameters]:
    return list(product(range(2, 21), range(2, 13)))


def _accelerated() -> list[Parameters]:
    return list(product(range(2, 13), range(2, 7), range(2, 9)))


def _from_rest() -> list[Parameters]:
    return list(product(range(2, 13, 2), range(2, 11)))


def _numbers(parameters: Parameters) -> list[int]:
    return [int(value) for value in parameters]


def _distance(parameters: Parameters, language: Language) -> Solution:
    v, t = _numbers(parameters)
    s = v * t
    mistakes: list[Number] = [v + t, Fraction(v, t), Fraction(s, 2), s + v, s - v, s + 10, s * 10]
    return measured(s, mistakes, "m", language, {"v": v, "t": t})


def _speed(parameters: Parameters, language: Language) -> Solution:
    v, t = _numbers(parameters)
    s = v * t
    mistakes: list[Number] = [Fraction(t, s), s * t, s - t, v + 1, v - 1, v + 2, v * 10, t]
    return measured(v, mistakes, "m/s", language, {"s": s, "t": t})


def _time(parameters: Parameters, language: Language) -> Solution:
    v, t = _numbers(parameters)
    s = v * t
    mistakes: list[Number] = [Fraction(v, s), s * v, s - v, t + 1, t - 1, t + 2, t * 10, v]
    return measured(t, mistakes, "s", language, {"s": s, "v": v})


def _final_speed(parameters: Parameters, language: Language) -> Solution:
    u, a, t = _numbers(parameters)
    gain = a * t
    mistakes: list[Number] = [
        gain,
        (u + a) * t,
        u + a,
        u + a + t,
        u + gain + a,
        u + Fraction(gain, 2),
        gain - u,
    ]
    return measured(u + gain, mistakes, "m/s", language, {"u": u, "a": a, "t": t, "gain": gain})


def _acceleration(parameters: Parameters, language: Language) -> Solution:
    u, a, t = _numbers(parameters)
    gain = a * t
    v = u + gain
    mistakes: list[Number] = [Fraction(v, t), Fraction(v + u, t), gain, gain * t, a + 1, a - 1, a * 10, a * 2]
    return measured(a, mistakes, "m/s²", language, {"u": u, "v": v, "t": t, "gain": gain})


def _path(parameters: Parameters, language: Language) -> Solution:
    a, t = _numbers(parameters)
    s = a * t * t // 2
    mistakes: list[Number] = [
        a * t,
        a * t * t,
        Fraction(a * t, 2),
        Fraction(a * a * t, 2),
        s + a,
        s - a,
        s * 10,
    ]
    return measured(s, mistakes, "m", language, {"a": a, "t": t, "square": t * t})


DISTANCE: Final = Task(
    "kinematics",
    "distance",
    _uniform,
    _distance,
    {
        "en": Texts(
            asked=(
                "A cyclist rides at a constant speed of {v} m/s for {t} s. What distance does the cyclist "
                "cover?",
                "A body moves uniformly at {v} m/s. How far does it travel in {t} s?",
                "What distance corresponds to {t} s of uniform motion at {v} m/s?",
            ),
            held_out=(
                "A conveyor belt runs at {v} m/s without changing speed. A box lies on it for {t} s. "
                "How far has the box moved?",
            ),
            explained=(
                "In uniform motion the distance is the speed multiplied by the time, s = v × t. "
                "With v = {v} m/s and t = {t} s, s = {v} × {t} = {result}.",
                "Every second adds the same {v} m, so {t} seconds add {t} times as much. "
                "The formula s = v × t gives {v} × {t} = {result}.",
                "Since the speed does not change, we multiply it by the duration: {v} m/s over {t} s. "
                "The product {v} × {t} is the distance covered, that is {result}.",
            ),
            told=("At a constant {v} m/s a body covers {v} × {t} = {result} in {t} s.",),
        ),
        "it": Texts(
            asked=(
                "Un ciclista pedala alla velocità costante di {v} m/s per {t} s. Quale distanza percorre?",
                "Un corpo si muove di moto uniforme a {v} m/s. Quanto spazio percorre in {t} s?",
                "Quale distanza corrisponde a {t} s di moto uniforme a {v} m/s?",
            ),
            held_out=(
                "Un nastro trasportatore scorre a {v} m/s senza cambiare velocità. Una scatola vi resta "
                "sopra per {t} s. Di quanto si è spostata la scatola?",
            ),
            explained=(
                "Nel moto uniforme lo spazio è il prodotto della velocità per il tempo, s = v × t. "
                "Con v = {v} m/s e t = {t} s si ha s = {v} × {t} = {result}.",
                "In ogni secondo si percorrono {v} m, sempre gli stessi; in {t} secondi se ne percorrono {t} "
                "volte tanti. La formula s = v × t dà {v} × {t} = {result}.",
                "Poiché la velocità non cambia, la si moltiplica per la durata: {v} m/s per {t} s. "
                "Il prodotto {v} × {t} è la distanza percorsa, cioè {result}.",
            ),
            told=("A velocità costante di {v} m/s un corpo percorre {v} × {t} = {result} in {t} s.",),
        ),
    },
)

SPEED: Final = Task(
    "kinematics",
    "speed",
    _uniform,
    _speed,
    {
        "en": Texts(
            asked=(
                "A tram covers {s} m in {t} s at a constant speed. What is its speed?",
                "A body in uniform motion travels {s} m in {t} s. How fast does it move?",
                "Which constant speed is needed to cover {s} m in {t} s?",
            ),
            held_out=(
                "Sensors {s} m apart see the same trolley pass {t} s one after the other, and its speed does "
                "not change. At what speed does it roll?",
            ),
            explained=(
                "In uniform motion the speed is the distance divided by the time, v = s / t. "
                "With s = {s} m and t = {t} s, v = {s} / {t} = {result}.",
                "The speed says how many metres are covered each second. Sharing {s} m equally among {t} "
                "seconds by v = s / t gives {s} / {t} = {result}.",
                "From s = v × t we obtain the speed by dividing the distance of {s} m by the {t} s that it "
                "takes. The quotient {s} / {t} is {result}.",
            ),
            told=("Whoever covers {s} m evenly in {t} s moves at {s} / {t} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Un tram percorre {s} m in {t} s a velocità costante. Qual è la sua velocità?",
                "Un corpo in moto uniforme percorre {s} m in {t} s. A quale velocità si muove?",
                "Quale velocità costante occorre per percorrere {s} m in {t} s?",
            ),
            held_out=(
                "Due sensori distanti {s} m vedono passare lo stesso carrello a {t} s l'uno dall'altro, e la "
                "velocità non cambia. A quale velocità procede il carrello?",
            ),
            explained=(
                "Nel moto uniforme la velocità è lo spazio diviso per il tempo, v = s / t. "
                "Con s = {s} m e t = {t} s si ha v = {s} / {t} = {result}.",
                "La velocità dice quanti metri si percorrono in ogni secondo. Ripartendo {s} m in parti "
                "uguali su {t} secondi, v = s / t dà {s} / {t} = {result}.",
                "Da s = v × t si ricava la velocità dividendo la distanza di {s} m per i {t} s impiegati. "
                "Il quoziente {s} / {t} vale {result}.",
            ),
            told=("Chi percorre {s} m in {t} s con moto uniforme va a {s} / {t} = {result}.",),
        ),
    },
)

TIME: Final = Task(
    "kinematics",
    "time",
    _uniform,
    _time,
    {
        "en": Texts(
            asked=(
                "A boat crosses {s} m of water at a constant {v} m/s. How long does it take?",
                "How much time does a body in uniform motion at {v} m/s need for {s} m?",
                "A train runs at a constant {v} m/s. After what time has it covered {s} m?",
            ),
            held_out=(
                "A robot must reach a shelf {s} m away and keeps to {v} m/s all the way. "
                "When does it arrive after the start?",
            ),
            explained=(
                "In uniform motion the time is the distance divided by the speed, t = s / v. "
                "With s = {s} m and v = {v} m/s, t = {s} / {v} = {result}.",
                "Each second takes the body {v} m further, so we count how often {v} m fit into {s} m. "
                "By t = s / v this is {s} / {v} = {result}.",
                "From s = v × t we obtain the time by dividing the distance of {s} m by the speed of {v} "
                "m/s. The quotient {s} / {v} is {result}.",
            ),
            told=("At a constant {v} m/s, {s} m take {s} / {v} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Una barca attraversa {s} m d'acqua alla velocità costante di {v} m/s. Quanto tempo impiega?",
                "Quanto tempo occorre a un corpo in moto uniforme a {v} m/s per percorrere {s} m?",
                "Un treno viaggia alla velocità costante di {v} m/s. Dopo quanto tempo ha percorso {s} m?",
            ),
            held_out=(
                "Un robot deve raggiungere uno scaffale a {s} m di distanza e mantiene sempre {v} m/s. "
                "Quanto tempo dopo la partenza arriva?",
            ),
            explained=(
                "Nel moto uniforme il tempo è lo spazio diviso per la velocità, t = s / v. "
                "Con s = {s} m e v = {v} m/s si ha t = {s} / {v} = {result}.",
                "In ogni secondo il corpo avanza di {v} m, quindi si conta quante volte {v} m stanno in {s} "
                "m. Con t = s / v si trova {s} / {v} = {result}.",
                "Da s = v × t si ricava il tempo dividendo la distanza di {s} m per la velocità di {v} m/s. "
                "Il quoziente {s} / {v} vale {result}.",
            ),
            told=("A velocità costante di {v} m/s, per {s} m occorrono {s} / {v} = {result}.",),
        ),
    },
)

FINAL_SPEED: Final = Task(
    "kinematics",
    "final_speed",
    _accelerated,
    _final_speed,
    {
        "en": Texts(
            asked=(
                "A car at {u} m/s accelerates uniformly by {a} m/s² for {t} s. What speed does it reach?",
                "A body starts with {u} m/s and has a constant acceleration of {a} m/s². "
                "What is its speed after {t} s?",
                "What final speed follows from an initial {u} m/s and {a} m/s² acting for {t} s?",
            ),
            held_out=(
                "A sledge enters a slope with {u} m/s, and there its acceleration is always {a} m/s². "
                "How fast is it {t} s later?",
            ),
            explained=(
                "With constant acceleration the speed is v = v0 + a × t. Acceleration adds {a} × {t} = "
                "{gain} m/s to the initial {u} m/s, so v = {u} + {gain} = {result}.",
                "Each second adds {a} m/s to the speed, and {t} seconds add {a} × {t} = {gain} m/s. "
                "Starting from {u} m/s, the body reaches {u} + {gain} = {result}.",
                "We use v = v0 + a × t with v0 = {u} m/s: the gain is {a} × {t} = {gain} m/s, "
                "and the sum {u} + {gain} gives a final speed of {result}.",
            ),
            told=("From {u} m/s, {a} m/s² over {t} s lead to {u} + {gain} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Un'auto a {u} m/s accelera in modo uniforme di {a} m/s² per {t} s. Quale velocità "
                "raggiunge?",
                "Un corpo parte a {u} m/s e ha un'accelerazione costante di {a} m/s². "
                "Qual è la sua velocità dopo {t} s?",
                "Quale velocità finale risulta da {u} m/s iniziali e da {a} m/s² applicati per {t} s?",
            ),
            held_out=(
                "Una slitta imbocca una discesa a {u} m/s e lì la sua accelerazione è sempre di {a} m/s². "
                "A quale velocità va {t} s più tardi?",
            ),
            explained=(
                "Con accelerazione costante la velocità è v = v0 + a × t. L'accelerazione aggiunge {a} × "
                "{t} = {gain} m/s ai {u} m/s iniziali, quindi v = {u} + {gain} = {result}.",
                "In ogni secondo la velocità aumenta di {a} m/s e in {t} secondi di {a} × {t} = {gain} m/s. "
                "Partendo da {u} m/s, il corpo raggiunge {u} + {gain} = {result}.",
                "Si usa v = v0 + a × t con v0 = {u} m/s: l'aumento è {a} × {t} = {gain} m/s "
                "e la somma {u} + {gain} dà una velocità finale di {result}.",
            ),
            told=("Partendo da {u} m/s, {a} m/s² per {t} s portano a {u} + {gain} = {result}.",),
        ),
    },
)

ACCELERATION: Final = Task(
    "kinematics",
    "acceleration",
    _accelerated,
    _acceleration,
    {
        "en": Texts(
            asked=(
                "A car goes from {u} m/s to {v} m/s in {t} s. What is its mean acceleration?",
                "The speed of a body rises evenly from {u} m/s to {v} m/s within {t} s. "
                "How large is the acceleration?",
                "Which constant acceleration turns {u} m/s into {v} m/s in {t} s?",
            ),
            held_out=(
                "A speedometer shows {u} m/s and, {t} s later, {v} m/s, with an even rise between. "
                "What acceleration is that?",
            ),
            explained=(
                "Acceleration is the change of speed divided by the time, a = (v - v0) / t. The change is "
                "{v} - {u} = {gain} m/s, so a = {gain} / {t} = {result}.",
                "The speed grows by {v} - {u} = {gain} m/s altogether. Spread evenly over {t} seconds, "
                "each second adds {gain} / {t}, an acceleration of {result}.",
                "First subtract the initial speed from the final one: {v} - {u} = {gain} m/s. "
                "Then divide by the duration, as a = (v - v0) / t says: {gain} / {t} = {result}.",
            ),
            told=("From {u} m/s to {v} m/s in {t} s the acceleration is {gain} / {t} = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Un'auto passa da {u} m/s a {v} m/s in {t} s. Qual è la sua accelerazione media?",
                "La velocità di un corpo cresce in modo uniforme da {u} m/s a {v} m/s in {t} s. "
                "Quanto vale l'accelerazione?",
                "Quale accelerazione costante porta da {u} m/s a {v} m/s in {t} s?",
            ),
            held_out=(
                "Un tachimetro segna {u} m/s e, {t} s più tardi, {v} m/s, con una crescita regolare. "
                "Di quale accelerazione si tratta?",
            ),
            explained=(
                "L'accelerazione è la variazione di velocità divisa per il tempo, a = (v - v0) / t. "
                "La variazione è {v} - {u} = {gain} m/s, quindi a = {gain} / {t} = {result}.",
                "La velocità cresce in tutto di {v} - {u} = {gain} m/s. Ripartita su {t} secondi, in ogni "
                "secondo aumenta di {gain} / {t}, cioè l'accelerazione è {result}.",
                "Prima si sottrae la velocità iniziale da quella finale: {v} - {u} = {gain} m/s. "
                "Poi si divide per la durata, secondo a = (v - v0) / t: {gain} / {t} = {result}.",
            ),
            told=("Da {u} m/s a {v} m/s in {t} s l'accelerazione è {gain} / {t} = {result}.",),
        ),
    },
)

FROM_REST: Final = Task(
    "kinematics",
    "from_rest",
    _from_rest,
    _path,
    {
        "en": Texts(
            asked=(
                "A body starts from rest with a constant acceleration of {a} m/s². "
                "What distance does it cover in {t} s?",
                "How far does a rocket get in {t} s from a standstill at a constant {a} m/s²?",
                "What distance belongs to {t} s of uniform acceleration by {a} m/s², starting at rest?",
            ),
            held_out=(
                "A sledge stands still on a magnetic track, which then makes it gain {a} m/s in every "
                "second. How long is its path after {t} s?",
            ),
            explained=(
                "From rest, with constant acceleration, the distance is s = a × t² / 2. "
                "With a = {a} m/s² and t² = {square}, s = {a} × {square} / 2 = {result}.",
                "The time counts squared and the product is halved, s = a × t² / 2. "
                "Here t² is {t} × {t} = {square}, and {a} × {square} / 2 gives {result}.",
                "A body that starts from rest covers half of a × t². The square of {t} is {square}, "
                "its product with {a} is halved, and the distance is {result}.",
            ),
            told=("From rest, {a} m/s² for {t} s make a path of {a} × {square} / 2 = {result}.",),
        ),
        "it": Texts(
            asked=(
                "Un corpo parte da fermo con accelerazione costante di {a} m/s². "
                "Quale distanza percorre in {t} s?",
                "Quanta strada fa un razzo in {t} s, partendo da fermo con {a} m/s² costanti?",
                "Quale spazio corrisponde a {t} s di accelerazione uniforme di {a} m/s² partendo da fermo?",
            ),
            held_out=(
                "Una slitta è ferma su un binario magnetico, che poi le fa acquistare {a} m/s in ogni "
                "secondo. Quanto è lungo il suo percorso dopo {t} s?",
            ),
            explained=(
                "Partendo da fermo, con accelerazione costante, lo spazio è s = a × t² / 2. "
                "Con a = {a} m/s² e t² = {square} si ha s = {a} × {square} / 2 = {result}.",
                "Il tempo conta al quadrato e il prodotto si dimezza, s = a × t² / 2. "
                "Qui t² è {t} × {t} = {square} e {a} × {square} / 2 dà {result}.",
                "Un corpo che parte da fermo percorre la metà di a × t². Il quadrato di {t} è {square}, "
                "il suo prodotto per {a} si dimezza e la distanza è {result}.",
            ),
            told=("Da fermo, {a} m/s² per {t} s danno un percorso di {a} × {square} / 2 = {result}.",),
        ),
    },
)

TASKS: Final = (DISTANCE, SPEED, TIME, FINAL_SPEED, ACCELERATION, FROM_REST)
