"""How events come in and are kept. May import models, nothing above."""
