"""What a course says about each family: definitions and rules, for continued pre-training."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from fastreward.integrations.exams.task import Language

FACTS: Final[Mapping[str, Mapping[Language, tuple[str, ...]]]] = {
    "dilutions": {
        "en": (
            "Concentration says how much solute there is in a litre of solution.",
            "When water is added the amount of solute stays the same and the volume grows.",
            "In a dilution the product of concentration and volume does not change: C1 × V1 = C2 × V2.",
            "A solution that is diluted to twice its volume has half of its concentration.",
            "The water to be added is the final volume less the volume at the start.",
        ),
        "it": (
            "La concentrazione dice quanto soluto c'è in un litro di soluzione.",
            "Quando si aggiunge acqua la quantità di soluto resta la stessa e il volume cresce.",
            "In una diluizione il prodotto di concentrazione e volume non cambia: C1 × V1 = C2 × V2.",
            "Una soluzione diluita al doppio del volume ha la metà della concentrazione.",
            "L'acqua da aggiungere è il volume finale meno il volume iniziale.",
        ),
    },
    "molarity": {
        "en": (
            "The mole is the unit of the amount of substance.",
            "Molarity is the number of moles of solute in a litre of solution.",
            "The molar mass is the mass of one mole, given in grams per mole.",
            "From mass to moles one divides by the molar mass, from moles to mass one multiplies by it.",
            "The molarity c, the amount n and the volume V are linked by c = n / V.",
        ),
        "it": (
            "La mole è l'unità della quantità di sostanza.",
            "La molarità è il numero di moli di soluto in un litro di soluzione.",
            "La massa molare è la massa di una mole, espressa in grammi su mole.",
            "Dalla massa alle moli si divide per la massa molare, dalle moli alla massa si moltiplica.",
            "La molarità c, la quantità n e il volume V sono legati da c = n / V.",
        ),
    },
    "blood_groups": {
        "en": (
            "The alleles A and B of the blood groups are codominant, and the allele O is recessive to both.",
            "Whoever has group O has the genotype OO, and whoever has group AB has the genotype AB.",
            "Group A can come from the genotype AA or AO, group B from BB or BO.",
            "Red cells of group AB carry both antigens, those of group O carry neither.",
            "Rh positive red cells carry antigen D, Rh negative ones do not.",
            "A patient may be given red cells that carry no antigen which the patient lacks.",
        ),
        "it": (
            "Gli alleli A e B dei gruppi sanguigni sono codominanti, e l'allele 0 è recessivo rispetto a "
            "entrambi.",
            "Chi ha il gruppo 0 ha il genotipo 00, e chi ha il gruppo AB ha il genotipo AB.",
            "Il gruppo A può venire dal genotipo AA o A0, il gruppo B da BB o B0.",
            "I globuli rossi di gruppo AB portano entrambi gli antigeni, quelli di gruppo 0 nessuno dei due.",
            "I globuli rossi Rh positivi portano l'antigene D, quelli Rh negativi no.",
            "Un paziente può ricevere globuli rossi che non portano antigeni che a lui mancano.",
        ),
    },
    "units": {
        "en": (
            "A kilometre has 1000 metres, a metre 100 centimetres and a centimetre 10 millimetres.",
            "A tonne has 1000 kilograms, a kilogram 1000 grams and a gram 1000 milligrams.",
            "A litre has 1000 millilitres or 10 decilitres.",
            "An hour has 60 minutes and a minute 60 seconds.",
            "Converting to a smaller unit one multiplies, converting to a larger one one divides.",
            "A speed in m/s is multiplied by 3.6 to have it in km/h.",
        ),
        "it": (
            "Un chilometro ha 1000 metri, un metro 100 centimetri e un centimetro 10 millimetri.",
            "Una tonnellata ha 1000 chilogrammi, un chilogrammo 1000 grammi e un grammo 1000 milligrammi.",
            "Un litro ha 1000 millilitri o 10 decilitri.",
            "Un'ora ha 60 minuti e un minuto 60 secondi.",
            "Passando a un'unità più piccola si moltiplica, passando a una più grande si divide.",
            "Una velocità in m/s si moltiplica per 3,6 per averla in km/h.",
        ),
    },
    "percentages": {
        "en": (
            "One per cent is one hundredth.",
            "To find a percentage of a number one multiplies the number by it and divides by 100.",
            "To find the whole from a part one divides by the percentage and multiplies by 100.",
            "A discount is subtracted from the price.",
            "In a direct proportion the ratio of the two quantities is constant.",
        ),
        "it": (
            "Uno per cento è un centesimo.",
            "Per trovare la percentuale di un numero lo si moltiplica per essa e si divide per 100.",
            "Per trovare il totale da una parte si divide per la percentuale e si moltiplica per 100.",
            "Uno sconto si sottrae dal prezzo.",
            "In una proporzione diretta il rapporto delle due grandezze è costante.",
        ),
    },
    "probability": {
        "en": (
            "If all cases are equally likely, probability is the number of favourable cases divided by that "
            "of all cases.",
            "A probability is a number from 0, impossible, to 1, certain.",
            "An event and its opposite have probabilities that add up to 1.",
            "The probabilities of independent events are multiplied to find that of both.",
            "A fraction is reduced by dividing both of its terms by their greatest common divisor.",
        ),
        "it": (
            "Se tutti i casi sono ugualmente probabili, la probabilità è il numero dei casi favorevoli "
            "diviso quello di tutti i casi.",
            "Una probabilità è un numero da 0, impossibile, a 1, certo.",
            "Un evento e il suo contrario hanno probabilità la cui somma è 1.",
            "Le probabilità di eventi indipendenti si moltiplicano per trovare quella di entrambi.",
            "Una frazione si riduce dividendo entrambi i termini per il loro massimo comune divisore.",
        ),
    },
    "crosses": {
        "en": (
            "A gene can exist in different forms, which are called alleles.",
            "An individual with two equal alleles of a gene is homozygous, one with two different alleles is "
            "heterozygous.",
            "A recessive trait shows only if both alleles are recessive.",
            "A dominant allele shows already in a single copy.",
            "A cross of two heterozygotes gives three dominant descendants to one recessive on average.",
            "Genes on different chromosomes are inherited independently of each other, so their "
            "probabilities multiply.",
        ),
        "it": (
            "Un gene può esistere in forme diverse, che si chiamano alleli.",
            "Un individuo con due alleli uguali di un gene è omozigote, uno con due alleli diversi è "
            "eterozigote.",
            "Un carattere recessivo si manifesta solo se entrambi gli alleli sono recessivi.",
            "Un allele dominante si manifesta già in una sola copia.",
            "L'incrocio di due eterozigoti dà in media tre discendenti dominanti per uno recessivo.",
            "I geni su cromosomi diversi si ereditano in modo indipendente, perciò le loro probabilità si "
            "moltiplicano.",
        ),
    },
    "base_pairing": {
        "en": (
            "DNA has four bases: adenine, thymine, guanine and cytosine, written A, T, G and C.",
            "In the double helix A stands opposite T, and G opposite C.",
            "RNA contains uracil, U, where DNA contains thymine.",
            "Adenine and thymine are held together by two hydrogen bonds, guanine and cytosine by three.",
            "Transcription copies the template strand of a gene into messenger RNA.",
        ),
        "it": (
            "Il DNA ha quattro basi: adenina, timina, guanina e citosina, scritte A, T, G e C.",
            "Nella doppia elica A sta di fronte a T, e G di fronte a C.",
            "L'RNA contiene uracile, U, dove il DNA contiene timina.",
            "Adenina e timina sono unite da due legami a idrogeno, guanina e citosina da tre.",
            "La trascrizione copia il filamento stampo di un gene in RNA messaggero.",
        ),
    },
    "syllogisms": {
        "en": (
            "A syllogism has two premises and a conclusion; the middle term occurs in both premises and not "
            "in the conclusion.",
            "From two negative premises nothing follows about how the other terms are related.",
            "From two particular premises nothing follows.",
            "If a premise is negative, the conclusion can only be negative.",
            "If a premise speaks of some, the conclusion cannot speak of all.",
            "The middle term must be taken in its whole extent by one premise at least.",
        ),
        "it": (
            "Un sillogismo ha due premesse e una conclusione; il termine medio compare in entrambe le "
            "premesse e non nella conclusione.",
            "Da due premesse negative non segue nulla sul rapporto tra gli altri termini.",
            "Da due premesse particolari non segue nulla.",
            "Se una premessa è negativa, la conclusione può essere solo negativa.",
            "Se una premessa parla di alcuni, la conclusione non può parlare di tutti.",
            "Il termine medio deve essere preso in tutta la sua estensione da almeno una premessa.",
        ),
    },
    "sequences": {
        "en": (
            "In an arithmetic sequence the difference of two neighbouring terms is always the same.",
            "In a geometric sequence the ratio of two neighbouring terms is always the same.",
            "The term in place n of an arithmetic sequence is the first term plus n - 1 times the "
            "difference.",
            "A geometric sequence with a ratio above 1 and positive terms grows faster and faster.",
        ),
        "it": (
            "In una successione aritmetica la differenza di due termini vicini è sempre la stessa.",
            "In una successione geometrica il rapporto di due termini vicini è sempre lo stesso.",
            "Il termine al posto n di una successione aritmetica è il primo termine più n - 1 volte la "
            "differenza.",
            "Una successione geometrica con rapporto maggiore di 1 e termini positivi cresce sempre più in "
            "fretta.",
        ),
    },
    "kinematics": {
        "en": (
            "Speed is the distance covered divided by the time that it takes, measured in metres per second.",
            "In uniform motion the speed is constant and the distance is proportional to the time.",
            "Acceleration is the change of speed divided by the time, measured in metres per second squared.",
            "With constant acceleration from rest the distance grows with the square of the time.",
            "The speed after a time t of constant acceleration a is v = v0 + a × t.",
        ),
        "it": (
            "La velocità è la distanza percorsa divisa per il tempo impiegato, misurata in metri al secondo.",
            "Nel moto uniforme la velocità è costante e lo spazio è proporzionale al tempo.",
            "L'accelerazione è la variazione di velocità divisa per il tempo, misurata in metri al secondo "
            "quadrato.",
            "Con accelerazione costante da fermo lo spazio cresce con il quadrato del tempo.",
            "La velocità dopo un tempo t di accelerazione costante a è v = v0 + a × t.",
        ),
    },
}
