"""`eddy train --from`: the intensity model from a user's own stream."""
