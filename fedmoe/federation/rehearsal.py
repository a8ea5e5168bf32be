"""A dry run of a method with the privacy mechanism before the first round."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from fedmoe.client.work import ClientWork
from fedmoe.federation.state import fresh_server
from fedmoe.privacy.mechanism import Privacy
from fedmoe.protocol.records import ClientState, RoundContext, Update
from fedmoe.server.state import Known


def rehearse(work: ClientWork, privacy: Privacy, clients: Sequence[int]) -> None:
    """Two rounds of the protocol in which parameters are shifted slightly instead of trained, and nothing is kept.

    This detects a method that does not fit the mechanism before the first round.

    Raises:
        UserError: the method does not fit.
    """
    method, module = work.method, work.module
    privacy.fits(method, module.optim)
    if not privacy.active or not work.config.rounds:
        return
    server, states = fresh_server(module.declared, module.shared_start()), dict.fromkeys(clients, ClientState())
    found: list[Update] = []
    for number in (1, 2):
        context, updates = RoundContext(number, tuple(clients), work.seed), []
        for client_id, state in states.items():
            downlink = method.configure(server, client_id, context)
            start = method.start(state, downlink)
            module.load(client_id, start, data=work.data.client(client_id))
            with torch.no_grad():
                for parameter in module.parameters():
                    parameter.add_(0.01 * (1 + client_id))
            examples = work.about(client_id).train_examples
            update, states[client_id] = method.finish(module, state, downlink, examples)
            privacy.check(module, downlink, start, update)
            server.clients[client_id] = Known(number, downlink.expert_ids, number, bool(downlink.experts))
            updates.append(update)
        for update in updates:
            method.admit(server, update)
        method.aggregate(server, updates, context)
        found += updates
    privacy.sends = any(update.parameters for update in found)
