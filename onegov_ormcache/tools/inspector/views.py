"""The pages, each for what :mod:`.models` names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial, wraps
from typing import Any

from sqlalchemy.exc import OperationalError
from webob.exc import HTTPNotFound

from ...errors import DatabaseUnreachable, OrmCacheError, RetryableConflict, StoreUnreachable
from ..inspection.explaining import explain
from ..inspection.outboxes import OutboxFacts, outboxes_of
from .actions import CreatorFailed, evict, evict_all, refresh, why_no_refresh
from .app import Inspector
from .charts import charts, gets_chart
from .explaining import answers, reasons
from .forms import check, field, secret_of
from .messages import database_away, message, store_away
from .models import (
    AllTenants,
    ChangeCache,
    Front,
    Servers,
    Stylesheet,
    Tags,
    Tenant,
    TenantProperty,
    ViewCache,
)
from .readings import (
    MOST_TAGS,
    MOST_TENANTS,
    PropertyReading,
    Readings,
    Total,
    evicting,
    tag_readings,
    tag_text,
)
from .rendering import FormTokens, link, render, see_other, stylesheet
from .serving import facts, notices

View = Callable[[Any, Any], Any]

#: What a page says after its form was sent, by the text in its address.
DONE = {
    'evict': 'Evicted. The next read of each value computes it anew.',
    'refresh': 'Evicted, and computed anew.',
}

#: The most commits of one page.
MOST_COMMITS = 8


def reading(view: View) -> View:
    """Show a page that says so if a server can't be reached."""

    @wraps(view)
    def read(self: Any, request: Any) -> Any:
        try:
            return view(self, request)
        except StoreUnreachable as error:
            return store_away(request, error)
        except (DatabaseUnreachable, OperationalError) as error:
            return database_away(request, error)

    return read


def seen(request: Any) -> dict[str, Any]:
    """Return what every page says of the visitor."""
    return {
        'sees_servers': request.app.permits(request.identity, AllTenants(), ViewCache),
        'done': DONE.get(request.GET.get('done', ''), ''),
    }


def require(request: Any, tenant: Tenant) -> None:
    """Raise a 404 if the application has no such tenant.

    Only who may see the tenant learns that.
    """
    cache = request.app.inspected
    if tenant == request.app.present_tenant:
        return
    if cache.ambient is not None:
        # the host knows its tenants, and we those that it has worked for
        if tenant.name not in cache.statistics.tenants():
            raise HTTPNotFound(f'There is no tenant {tenant.name!r}.')
    elif not cache.session_manager.has_schema(tenant.name):
        raise HTTPNotFound(f'There is no tenant {tenant.name!r}.')


@Inspector.view(model=Stylesheet)
def view_stylesheet(self: Stylesheet, request: Any) -> Any:
    return stylesheet()


@Inspector.view(model=Front, permission=ViewCache)
@reading
def view_front(self: Front, request: Any) -> Any:
    """The tenants that the visitor may see."""
    app, identity = request.app, request.identity
    readings = Readings(app.inspected)
    names = set(readings.tenants())
    if app.present_tenant is not None:
        names.add(app.present_tenant.name)
    wanted = request.GET.get('find', '').strip().lower()
    if app.permits(identity, AllTenants(), ViewCache):
        found = [name for name in sorted(names) if wanted in name]
    else:
        found = [
            name for name in sorted(names)
            if wanted in name and app.permits(identity, Tenant(name), ViewCache)
        ]  # fmt: skip
    read = [readings.tenant(Tenant(name)) for name in found[:MOST_TENANTS]]
    read.sort(key=lambda each: -each.total.gets)
    return render(
        request, 'front',
        tenants=[(each.tenant, each.total, gets_chart(each.hours())) for each in read],
        total=sum((each.total for each in read), Total()),
        number_found=len(found),
        left_out=len(found) - len(read),
        wanted=wanted,
        **seen(request),
    )  # fmt: skip


@Inspector.view(model=Tenant, permission=ViewCache)
@reading
def view_tenant(self: Tenant, request: Any) -> Any:
    """A tenant: its properties and pages, and what is in doubt."""
    require(request, self)
    readings = Readings(request.app.inspected)
    read = readings.tenant(self)
    doubts = in_doubt(readings, self)
    properties = readings.properties(read, doubts)
    return render(
        request, 'tenant',
        tenant=self,
        tags_page=Tags(self),
        total=read.total,
        charts=charts(read.hours()),
        properties=rows([p for p in properties if not p.is_page], read),
        pages=rows([p for p in properties if p.is_page], read),
        doubts=sorted(doubts),
        **changing(request, self),
        **seen(request),
    )  # fmt: skip


def in_doubt(readings: Readings, tenant: Tenant) -> frozenset[str]:
    """Return the tags of a tenant that are in doubt."""
    found = readings.tags(tenant)
    return frozenset() if found is None else frozenset(
        tag for doubt in found.doubts for tag in doubt.tags
    )  # fmt: skip


def rows(properties: list[PropertyReading], read: Any) -> list[tuple[PropertyReading, Any]]:
    """Return properties with the charts beside them."""
    return [(each, gets_chart(read.hours(each.model.name))) for each in properties]


def changing(request: Any, tenant: Tenant) -> dict[str, Any]:
    """Return what a page with forms needs: whether the visitor may send them, and their tokens."""
    app = request.app
    may_change = app.permits(request.identity, tenant, ChangeCache)
    # a host that has transactions of its own can not work for two tenants in one request
    if app.inspected.ambient is not None and tenant != app.present_tenant:
        may_change = False
    return {'may_change': may_change, 'form': FormTokens(request) if may_change else None}


@Inspector.view(model=TenantProperty, permission=ViewCache)
@reading
def view_property(self: TenantProperty, request: Any) -> Any:
    """A property of a tenant."""
    require(request, self.tenant)
    readings = Readings(request.app.inspected)
    read = readings.tenant(self.tenant)
    it = one_property(readings, read, self)
    return render(
        request, 'property',
        tenant=self.tenant,
        it=it,
        explained=explain(readings.site, it.prop, ()) if it.prop else None,
        counted=it.counted,
        charts=charts(read.hours(self.name)),
        answers=answers(it.counted),
        reasons=reasons(it.counted),
        evictions=[
            (commit.at, sorted(set(map(tag_text, evicting(it.tags, commit.tags)))))
            for commit in read.statistics.last_commits if evicting(it.tags, commit.tags)
        ][:MOST_COMMITS],
        tags=tag_readings(
            {*it.tags, *evicting(it.tags, read.statistics.tags)}, read.statistics.tags, it.in_doubt
        )[:MOST_TAGS],
        why_no_refresh=why_no_refresh(request.app, it.prop),
        **changing(request, self.tenant),
        **seen(request),
    )  # fmt: skip


def one_property(readings: Readings, read: Any, model: TenantProperty) -> PropertyReading:
    """Return a property of a tenant; raise a 404 if there is none."""
    doubts = in_doubt(readings, model.tenant)
    for each in readings.properties(read, doubts):
        if each.model == model:
            return each
    raise HTTPNotFound(f'{model.tenant.name} has no property {model.name!r}.')


@Inspector.view(model=Tags, permission=ViewCache)
@reading
def view_tags(self: Tags, request: Any) -> Any:
    """A tenant's tags."""
    require(request, self.tenant)
    readings = Readings(request.app.inspected)
    found = readings.tags(self.tenant)
    read = readings.sums(self.tenant)
    doubts = in_doubt(readings, self.tenant)
    counted = read.statistics.tags
    shown = tag_readings(
        {*counted, *doubts}, counted, doubts, readings.properties(read, doubts)
    )
    return render(
        request, 'tags',
        tenant=self.tenant,
        tags=shown[:MOST_TAGS],
        doubts=found.doubts if found else (),
        quarantine=found.quarantine if found else None,
        left_out=max(0, len(shown) - MOST_TAGS),
        **seen(request),
    )  # fmt: skip


@Inspector.view(model=Servers, permission=ViewCache)
def view_servers(self: Servers, request: Any) -> Any:
    """The servers, and what an outage has left to do. It needs neither of them."""
    cache = request.app.inspected
    waiting: Sequence[OutboxFacts] = ()
    failure = ''
    try:
        waiting = outboxes_of(cache)
    except DatabaseUnreachable as error:
        failure = str(error)
    return render(
        request, 'servers',
        facts=facts(cache),
        notices=notices(cache),
        outbox=waiting,
        has_outbox=bool(cache.observer.database.outboxes()),
        failure=failure,
        **seen(request),
    )  # fmt: skip


# forms


@Inspector.view(model=Tenant, name='evict', request_method='POST', permission=ChangeCache)
@reading
def evict_tenant(self: Tenant, request: Any) -> Any:
    """Evict all values of a tenant."""
    require(request, self)
    check(request, secret_of(request.app.inspected), ('evict', self.name))
    if field(request, 'sure') != 'yes':
        return message(
            request, 400, 'Nothing was evicted',
            ['Tick the box beside the button, so that this does not happen by accident.'],
            back=link(request, self),
        )  # fmt: skip
    back = link(request, self)
    return done(request, lambda: evict_all(request.app, self), back) or see_other(
        f'{back}?done=evict'
    )


@Inspector.view(model=TenantProperty, name='evict', request_method='POST', permission=ChangeCache)
@reading
def evict_property(self: TenantProperty, request: Any) -> Any:
    """Evict the values of a property."""
    return changed(self, request, 'evict')


@Inspector.view(
    model=TenantProperty, name='refresh', request_method='POST', permission=ChangeCache
)
@reading
def refresh_property(self: TenantProperty, request: Any) -> Any:
    """Evict a property, and compute its value."""
    return changed(self, request, 'refresh')


def changed(model: TenantProperty, request: Any, deed: str) -> Any:
    """Evict or refresh a property, and lead back to its page."""
    app = request.app
    require(request, model.tenant)
    check(request, secret_of(app.inspected), (deed, model.tenant.name, model.name))
    bound = {prop.where: prop for prop in Readings(app.inspected).site.properties}
    prop = bound.get(model.name)
    if prop is None:
        raise HTTPNotFound(f'{model.tenant.name} has no property {model.name!r}.')
    back = link(request, model)
    if deed == 'evict':
        act = partial(evict, app, model.tenant, prop)
    elif why := why_no_refresh(app, prop):
        return message(request, 400, 'It can not be computed here', [why], back=back)
    else:
        act = partial(refresh, app, model.tenant, prop)
    return done(request, act, back) or see_other(f'{back}&done={deed}')


def done(request: Any, act: Callable[[], None], back: str) -> Any:
    """Do what a form asks for.

    :param back: the page that the form is on.
    :return: None if it was done; else a page that says what went wrong.
    """
    try:
        act()
    except (StoreUnreachable, RetryableConflict):
        raise  # the one has a page of its own, and the tween tries again after the other
    except CreatorFailed as error:
        return message(
            request, 500, 'The creator failed',
            [f'Its values were evicted. Computing it anew raised {error}; the log says more.'],
            back=back,
        )  # fmt: skip
    except OrmCacheError as error:
        return message(request, 409, 'Nothing was evicted', [str(error)], back=back)
    return None
