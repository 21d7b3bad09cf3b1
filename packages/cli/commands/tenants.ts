// cloister tenants: who may use the cluster, for operators.
import { defineCommand } from '../command.ts';
import { attempt, UsageError } from '../failure.ts';
import { formatAge } from '../format.ts';

export const tenants = defineCommand({
  usage: 'tenants [ls | create NAME]',
  options: {},
  min: 0,
  max: 2,
  example: 'cloister tenants\ncloister tenant create acme',
  async run(context, _values, [action = 'ls', name]) {
    const isCreate = action === 'create' && name !== undefined;
    if (!isCreate && (action !== 'ls' || name !== undefined))
      throw new UsageError('Write: cloister tenants ls, or: cloister tenants create NAME');
    const client = await context.client();
    if (isCreate) {
      const tenant = await attempt(`make tenant ${name}`, () => client.createTenant({ name }));
      if (context.json) await context.document(tenant);
      else await context.line(tenant.id);
      return 0;
    }
    const { tenants } = await attempt('list tenants', () => client.listTenants());
    if (context.json) await context.document({ tenants });
    else
      await context.table(
        [{ title: 'NAME' }, { title: 'ID' }, { title: 'CREATED' }],
        tenants.map((tenant) => [tenant.name, tenant.id, formatAge(tenant.createdAt, context.now())]),
      );
    return 0;
  },
});
